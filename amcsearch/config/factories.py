"""What a configuration names: rows of registries, and classes and functions of the user's own."""

import importlib
import importlib.util
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar, cast

from pydantic import ConfigDict, ValidationError, create_model

from amcsearch.config.messages import describe, hint, shown
from amcsearch.core import BadInputError, UserCode

__all__ = ["build", "call_factory", "check_contract", "choose", "import_factory", "label", "make", "pick"]

T = TypeVar("T")
LARGEST_PARAMETER: Final = 1e15


def import_factory(spec: str) -> Callable[..., Any]:
    """Import ``package.module:callable`` or ``path/to/file.py:callable``.

    A file's folder joins the end of ``sys.path``, so that the file may import its neighbours and worker processes
    can import the file.

    Raises:
        BadInputError: no colon, module or file not found, an exception while importing, no such attribute, or
            an attribute that cannot be called.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise BadInputError(f"factory {spec!r}: expected package.module:callable or path/to/file.py:callable")
    module = _import_file(Path(module_name), spec) if module_name.endswith(".py") else _import(module_name, spec)
    if not hasattr(module, name):
        raise BadInputError(f"factory {spec!r}: {module_name} has no {name!r}{hint(name, vars(module))}")
    factory = getattr(module, name)
    if not callable(factory):
        raise BadInputError(f"factory {spec!r}: {name!r} is a {type(factory).__name__}, expected a callable")
    return factory  # type: ignore[no-any-return]


def import_named(spec: str | None) -> Callable[..., Any] | None:
    """Return what ``import_factory`` gives; None where there is no spec."""
    return None if spec is None else import_factory(spec)


def _import(module_name: str, spec: str) -> ModuleType:
    _add_to_path(Path.cwd())
    with UserCode(f"factory {spec!r}: importing it"):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
                raise BadInputError(
                    f"factory {spec!r}: no module named {error.name!r}; install it, run from its folder, "
                    "or give path/to/file.py:callable"
                ) from error
            raise


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise BadInputError(f"factory {spec!r}: file {path} does not exist")
    path = path.resolve()
    if not path.stem.isidentifier():
        raise BadInputError(f"factory {spec!r}: {path.name} is no module name; rename it to letters, digits and _")
    _add_to_path(path.parent)
    importlib.invalidate_caches()
    module_spec = importlib.util.find_spec(path.stem)
    origin = module_spec.origin if module_spec else None
    if origin is None or not Path(origin).exists() or not path.samefile(origin):
        raise BadInputError(
            f"factory {spec!r}: the name {path.stem!r} belongs to another module ({origin or 'built in'}); "
            "rename the file"
        )
    return _import(path.stem, spec)


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def call_factory(spec: str, kwargs: Mapping[str, Any], key: str) -> Any:
    """Import the factory ``spec`` and call it with ``kwargs``; ``key`` is its key, such as ``model.factory``.

    Raises:
        BadInputError: as ``import_factory``, or the factory raised: names the key, the factory and the exception.
    """
    try:
        factory = import_factory(spec)
    except BadInputError as error:
        raise BadInputError(f"{key}: {error}") from error
    with UserCode(f"{key}: factory {spec!r}"):
        return factory(**kwargs)


def choose(options: Mapping[str, T], name: str, key: str) -> T:
    """Return the entry ``name`` of ``options``, which are all that there is; ``key`` as in ``pick``.

    Raises:
        BadInputError: unknown name; says the nearest and all known ones.
    """
    if name not in options:
        raise BadInputError(_unknown(options, name, key))
    return options[name]


def _unknown(options: Mapping[str, object], name: str, key: str) -> str:
    return f"{key} = {name!r} is unknown{hint(name, options)}; known: {', '.join(sorted(options))}"


def pick(registry: Mapping[str, T], name: str, key: str) -> T:
    """Return the entry ``name`` of a registry, or what ``module:Class`` or ``path/to/file.py:Class`` names.

    ``key`` is the configuration key it was asked by.

    Raises:
        BadInputError: unknown name; says the nearest and all known ones. Or as ``import_factory``.
    """
    if name in registry:
        return registry[name]
    if ":" not in name:
        problem = _unknown(registry, name, key)
        raise BadInputError(f"{problem}; one of your own is named module:Class or path/to/file.py:Class")
    try:
        return cast("T", import_factory(name))
    except BadInputError as error:
        raise BadInputError(f"{key}: {error}") from error


def label(name: str) -> str:
    """Shorten ``path/to/file.py:Class`` to ``file.py:Class`` for people; any other name comes back as it is."""
    path, colon, attribute = name.rpartition(":")
    return Path(path).name + colon + attribute if path.endswith(".py") else name


def make(
    registry: Mapping[str, Callable[..., T]],
    name: str,
    params: Mapping[str, Any],
    keys: tuple[str, str],
    contract: type[Any] | tuple[type[Any], ...],
) -> T:
    """Make what ``name`` names with ``params``; what is not the registry's is held to its ``contract``.

    ``keys`` are the configuration keys of the name and of the parameters. A protocol asks for its members, an abstract
    class (or one of several) for a subclass.

    Raises:
        BadInputError: as ``pick`` and ``build``, a construction that raises, or an object without a member of the
            contract: names the key, the spec and the member.
    """
    maker = pick(registry, name, keys[0])
    if name in registry:
        return build(maker, params, keys[1])
    spec = f"{keys[0]} = {name!r}"
    try:
        with UserCode("making it"):
            made = build(maker, params, keys[1])
            lacking = _lacking(made, contract)
    except BadInputError as error:
        raise BadInputError(f"{spec}: {error}") from error
    if lacking:
        raise BadInputError(f"{spec}: {lacking}")
    return made


def check_contract(made: object, contract: type[Any] | tuple[type[Any], ...], key: str) -> None:
    """Hold an object that a caller hands over to its contract, as ``make`` does; ``key`` names it in the error.

    Raises:
        BadInputError: the object lacks a member of the contract.
    """
    lacking = _lacking(made, contract)
    if lacking:
        raise BadInputError(f"{key}: {lacking}")


def _lacking(made: object, contract: type[Any] | tuple[type[Any], ...]) -> str:
    """Say what an object lacks of a contract and how to give it that, or nothing."""
    kind = made.__name__ if inspect.isclass(made) else type(made).__name__
    contracts = contract if isinstance(contract, tuple) else (contract,)
    if not all(getattr(c, "_is_protocol", False) for c in contracts):
        names = " or ".join(f"{c.__module__.rpartition('.')[0]}.{c.__name__}" for c in contracts)
        return "" if isinstance(made, contracts) else f"{kind} is no {names}; make it a subclass"
    if inspect.isclass(made):
        return f"it gives the class {kind}, expected an object; name the class itself"
    for owner in contracts:
        for name, member in _members(owner).items():
            is_method = inspect.isfunction(member)
            if not hasattr(made, name) or (is_method and not callable(getattr(made, name))):
                member_name = f"{'method' if is_method else 'attribute'} {name!r}"
                summary = (inspect.getdoc(member) or "").partition("\n")[0]
                return f"{kind} has no {member_name}, which every {owner.__name__} has; add it ({summary})"
    return ""


def _members(protocol: type[Any]) -> dict[str, Any]:
    """What a protocol asks for by name, its bases' members first."""
    owners = (owner for owner in reversed(protocol.__mro__) if getattr(owner, "_is_protocol", False))
    pairs = ((name, member) for owner in owners for name, member in vars(owner).items())
    return {name: member for name, member in pairs if not name.startswith("_") or name == "__call__"}


def _check_numbers(value: object, key: str) -> None:
    """Refuse numbers with which no parameter makes sense, wherever they stand."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_numbers(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_numbers(inner, f"{key}.{number}")
    elif isinstance(value, int | float) and not abs(value) <= LARGEST_PARAMETER:  # true for NaN too
        raise BadInputError(f"{key} = {shown(value)}, expected a finite number of at most {LARGEST_PARAMETER:g}")


def build(factory: Callable[..., T], params: Mapping[str, Any], key: str) -> T:
    """Call a registry's dataclass or function with ``params``, checked against its annotations.

    Raises:
        BadInputError: unknown or ill-typed parameter, one that is not finite or above 1e15, or one the factory refuses;
            lists the parameters there are.
    """
    signature = inspect.signature(factory)
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    known = list(signature.parameters)
    for name in params:
        if name not in known:
            raise BadInputError(f"{key}.{name} is unknown{hint(name, known)}; parameters: {', '.join(known) or 'none'}")
    fields: dict[str, Any] = {name: (hints.get(name, Any), ...) for name in params}
    _check_numbers(params, key)
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    try:
        # Through JSON: strict about types, and lists become tuples.
        model = create_model("Params", __config__=config, **fields)
        values = model.model_validate_json(json.dumps(dict(params)))
        return factory(**{name: getattr(values, name) for name in params})
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join([key, *map(str, first["loc"])])
        raise BadInputError(
            f"{dotted} = {shown(first['input'])}; {describe(first)} (parameters: {', '.join(known)})"
        ) from error
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{key}: {error}") from error
