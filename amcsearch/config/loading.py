"""A configuration file and its overrides → a valid ``Config``, and back to text.

Files named in a configuration become absolute paths.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from amcsearch.config.identity import MOST_BYTES, PATHS, SPECS, WORDS, texts_at
from amcsearch.config.lookup import CONFIGURATIONS, TABLES, find, find_file, lookup
from amcsearch.config.messages import describe, hint, shown
from amcsearch.config.schema import Config
from amcsearch.config.values import added_names
from amcsearch.config.yaml_text import KeyPath, parse_yaml, read_yaml, to_yaml
from amcsearch.core import BadInputError, Limit, check_depth, check_file
from amcsearch.runs import HERE, expanded, table_commands

__all__ = [
    "RUN_CONFIG",
    "Override",
    "asks_latency",
    "check_priced",
    "described_keys",
    "dump",
    "from_mapping",
    "json_schema",
    "load",
    "read_unchecked",
    "resolve_spec",
]


_WEIGHTED_SUM, _WEIGHT = "weighted_sum", 0.1  # the reward that weighs costs, and each weight where none is given


def resolve_spec(spec: str, folder: Path, where: str) -> str:
    """Return an import spec with the file of a ``file.py:callable`` absolute; any other comes back as it is.

    Raises:
        BadInputError: as ``find_file``.
    """
    path, colon, name = spec.rpartition(":")
    return _found(path, folder, where) + colon + name if path.endswith(".py") else spec


def _found(value: str, folder: Path, where: str) -> str:
    """Find a file of the user's, one that can be read and has at most ``MOST_BYTES``."""
    path = find_file(value, folder, where)
    try:
        check_file(Path(path), "file", MOST_BYTES)
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}") from error
    return path


LONGEST_SHOWN: Final = 120  # characters of an override in an error
_OPTION: Final = "--"  # with which the source of a value begins that an option set
RUN_CONFIG: Final = "config.yaml"  # which every run writes to its folder
_MOST_KEYS: Final = 16  # parts of a dotted key


@dataclass(frozen=True)
class Override:
    """A key that an option of its own sets, which errors name as it was typed: ``--trials 50``.

    ``setting`` is the dotted key and its value as YAML: ``search.trials=50``.
    """

    setting: str
    typed: str

    @classmethod
    def of(cls, text: "str | Override") -> "Override":
        """An override as it is, or one that ``--set`` sets."""
        return text if isinstance(text, cls) else cls(str(text), f"--set {text}")


def load(
    path: Path | str, overrides: Sequence[str | Override] = (), keys: Mapping[str, object] | None = None
) -> Config:
    """Read a configuration, a file or the name of one; ``overrides`` such as ``search.trials=50`` replace or add keys.

    ``keys`` are the same as values by dotted key, as Python gives them.

    Files named in it are looked for from the current folder, then from the configuration's folder; devices and tables
    also by name. They become absolute.

    Raises:
        BadInputError: one line naming the file and line, the key, its value and what is expected: file missing,
            YAML syntax, repeated or unknown key, wrong type, value out of bounds, a named file that does not exist.
    """
    path, data, where = _read(path, overrides)
    for path_of_key in _set_all(data, keys or {}, ""):
        _note(where, path_of_key, "")
    return _validated(data, where, str(path), path.parent)


def read_unchecked(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, object]:
    """Read a configuration as ``load`` does, but leave it to a service to check: it has other files than this machine.

    Raises:
        BadInputError: the file is missing, its syntax, a repeated key, or an override without a key.
    """
    return _read(path, overrides)[1]


def _read(path: Path | str, overrides: Sequence[str | Override]) -> tuple[Path, dict[str, Any], dict[KeyPath, str]]:
    """Return the path of a configuration, its values with overrides, and where each key was written."""
    path = Path(path)
    if not (path.is_absolute() or CONFIGURATIONS.fits(path)):
        path = find(CONFIGURATIONS, path)
    if path.is_dir():
        raise BadInputError(_of_folder(path))
    data, lines = read_yaml(path)
    where = {keys: f"{path}:{line}" for keys, line in lines.items()}
    for override in map(Override.of, overrides):
        _override(data, where, override)
    return path, data, where


def _of_folder(folder: Path) -> str:
    """Say what to give in place of a folder, which may be that of a run."""
    written = folder / RUN_CONFIG
    if not written.is_file():
        return f"{folder} is a folder, expected a configuration: a file, or the name of a shipped one, such as digits"
    quoted, file = shlex.quote(str(folder)), shlex.quote(str(written))
    return (
        f"{folder} is the folder of a run, expected a configuration; to go on with the run give {file} -o {quoted} "
        f"--resume, to begin another like it {file}, and to see what it found `amcsearch report {quoted}`"
    )


def from_mapping(
    data: Mapping[str, Any], source: str = "configuration", keys: Mapping[str, object] | None = None
) -> Config:
    """Validate a configuration that is no file, such as a request; ``source`` names it in errors, "" is not named.

    ``keys`` replace or add values by dotted key, as the overrides of ``load`` do.

    Raises:
        BadInputError: as ``load``, or a value that is not plain (a mapping, list, text, number, true, false or None).
    """
    plain = _plain(data, source)
    _set_all(plain, keys or {}, source)
    return _validated(plain, {}, source, Path.cwd())


def _plain(value: object, where: str) -> Any:
    """Return a copy of plain values as JSON has them: tuples as lists, every key a text."""
    try:
        plain = json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(f"{where} cannot be written as JSON ({error}); give plain values") from error
    check_depth(plain, where)
    return plain


def dump(config: Config) -> str:
    """Every key with its value as YAML; ``load`` reads it back to an equal configuration."""
    return to_yaml(config.model_dump(mode="json"))


def check_priced(
    config: Config, limits: Sequence[Limit], *, table: bool = False, profile: bool = False, reward: bool = False
) -> None:
    """Check that every limited cost and every objective, and what a ``reward`` weighs, can be priced on the device.

    ``table`` and ``profile`` say that one is at hand already, whatever the configuration names.

    Raises:
        BadInputError: latency without a table, or energy without a profile; names the key and the cure.
    """
    wanted: Mapping[str, str] = {
        **(_weighed(config) if reward else {}),
        **dict.fromkeys(config.search.objectives or (), "search.objectives"),
        **{limit.cost: limit.key for limit in limits},
    }
    if "latency_ms" in wanted and config.device.table is None and not table:
        location = config.device.location
        auto = "auto, which measures this machine, or to " if location == HERE else ""
        raise BadInputError(
            f"{wanted['latency_ms']} needs a latency table, device.table is null; set it to {auto}what this makes: "
            f"{table_commands(location)}"
        )
    if "energy_mj" in wanted and config.device.profile is None and not profile:
        raise BadInputError(
            f"{wanted['energy_mj']} needs device.profile, which is null; set it to a file, or to a name of "
            "`amcsearch list devices`"
        )


def _weighed(config: Config) -> dict[str, str]:
    """Costs that ``weighted_sum`` weighs on this device, each with its key and how to leave it out."""
    section = config.search.reward
    weights = {name: section.params.get(name, _WEIGHT) for name in ("latency_ms", "energy_mj")}
    keys = {name: f"search.reward.params.{name} = {weight} (0 leaves it out)" for name, weight in weights.items()}
    return {name: key for name, key in keys.items() if weights[name] and section.name == _WEIGHTED_SUM}


def asks_latency(config: Config, limits: Sequence[Limit] = ()) -> bool:
    """Whether a limit, an objective or the reward is in ``latency_ms``: what ``device.table: auto`` goes by.

    A reward of the user's own says so by a parameter of that name.
    """
    name, reward = "latency_ms", config.search.reward
    weight = reward.params.get(name, _WEIGHT * (reward.name == _WEIGHTED_SUM))
    limited = any(limit.cost == name for limit in (*limits, *config.limits))
    return limited or name in (config.search.objectives or ()) or bool(weight)


def described_keys() -> dict[str, str]:
    """Return every key of the configuration by dotted name: its default, or that it is required, and its meaning."""
    return dict(_described(Config, ""))


def _described(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        inner = None if get_origin(field.annotation) is dict else _section(field.annotation)
        if inner is None or field.default is None:
            value = field.default_factory() if callable(field.default_factory) else field.default  # type: ignore[call-arg]
            default = "required" if field.is_required() else json.dumps(to_jsonable_python(value), ensure_ascii=False)
            meaning = " ".join((field.description or "").split("\n\n")[0].replace("``", "").split())
            yield prefix + name, f"{default}; {meaning}".removesuffix("; ")
        if inner is not None:
            yield from _described(inner, f"{prefix}{name}.")


def json_schema() -> dict[str, Any]:
    """JSON schema of the configuration, for editors and other services."""
    return Config.model_json_schema()


def _override(data: dict[str, Any], where: dict[KeyPath, str], override: Override) -> None:
    dotted, equals, value = override.setting.partition("=")
    source = override.typed if len(override.typed) <= LONGEST_SHOWN else override.typed[:LONGEST_SHOWN] + "…"
    if not equals:
        raise BadInputError(f"{source}: expected key.key=value, such as search.trials=50")
    _note(where, _set(data, dotted.strip(), parse_yaml(value, source)[0], source), source)


def _note(where: dict[KeyPath, str], keys: KeyPath, source: str) -> None:
    """Note where a key was set; lines of the file that it replaces are no longer of its values."""
    for path in [path for path in where if path[: len(keys)] == keys]:
        del where[path]
    where[keys] = source


def _set_all(data: dict[str, Any], keys: Mapping[str, object], source: str) -> list[KeyPath]:
    """Set plain values at dotted keys; returns the parts of each key."""
    return [
        _set(data, dotted, _plain(value, _at(source, dotted)), _at(source, dotted)) for dotted, value in keys.items()
    ]


def _at(source: str, text: str) -> str:
    return f"{source}: {text}" if source else text


def _set(data: dict[str, Any], dotted: str, value: object, source: str) -> tuple[str, ...]:
    """Set a value at a dotted key, and make the sections that are not there; returns the parts of the key."""
    keys = tuple(dotted.split("."))
    if not all(map(str.strip, keys)) or len(keys) > _MOST_KEYS:
        raise BadInputError(f"{source}: expected a key of 1 to {_MOST_KEYS} parts with dots, such as search.trials")
    section = data
    for i, key in enumerate(keys[:-1]):
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            raise BadInputError(f"{source}: {'.'.join(keys[: i + 1])} is {shown(inner)}, it has no keys to set")
        section = inner
    section[keys[-1]] = value
    return keys


def _validated(data: dict[str, Any], where: Mapping[KeyPath, str], source: str, folder: Path) -> Config:
    for keys in (*PATHS, *SPECS):
        for path, holder, key in texts_at(data, keys):
            at = _at(where.get(path, source), ".".join(path))
            holder[key] = _located(keys, holder[key], folder, at)
    try:
        # Through JSON: strict about types, and lists become tuples.
        return Config.model_validate_json(json.dumps(data), context=added_names(data))
    except ValidationError as error:
        raise _refusal(error.errors(), data, where, source) from error
    except ValueError as error:  # Python writes no number of more than 4,300 digits
        raise BadInputError(_at(source, f"a number has too many digits ({error}); write a smaller one")) from error


def _located(keys: tuple[str, ...], value: str, folder: Path, at: str) -> str:
    """The absolute path of the file that a key names, or the spec with its file absolute."""
    if keys in SPECS:
        return resolve_spec(value, folder, at)
    kind = PATHS[keys]
    if value in WORDS.get(keys, ()):
        return value
    if kind is None:
        return _found(value, folder, at)
    if kind is TABLES and lookup(kind, value, folder) is None:
        # no error yet: the same configuration is used to make the table; a bare name stays one
        return value if Path(value).name == value else os.path.abspath(expanded(value))
    return str(find(kind, value, folder, at))


def _refusal(
    errors: list[ErrorDetails], data: Mapping[str, Any], where: Mapping[KeyPath, str], source: str
) -> BadInputError:
    """The error of the first value that was refused: its line, its key, and what it may be."""
    error = errors[0]
    keys, is_of_key = _written(error, data)
    dotted = ".".join(map(str, keys))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raised = error.get("ctx", {}).get("error")
    if isinstance(raised, BadInputError):  # which names its key and value itself
        at = _source_of(keys, str(raised), where, source)
        return BadInputError(_at(at, f"{raised}{more}"), raised.key or dotted or None, raised.bound)
    text, bound = _sentence(error, keys, dotted, is_of_key)
    return BadInputError(_at(_source_of(keys, text, where, source), text + more), dotted or None, bound)


def _source_of(keys: KeyPath, message: str, where: Mapping[KeyPath, str], source: str) -> str:
    """Where a value that was refused was written: the line of its key, or of the section that holds it.

    Of a section the options that set a key which the message speaks of come first.
    """
    words = set(re.findall(r"\w+", message))
    options = [
        at
        for path, at in where.items()
        if at.startswith(_OPTION) and len(path) > len(keys) and path[: len(keys)] == keys and str(path[-1]) in words
    ]
    return ", ".join(dict.fromkeys(options)) or next(
        (where[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in where), source
    )


def _sentence(error: ErrorDetails, keys: KeyPath, dotted: str, is_of_key: bool) -> tuple[str, str]:
    """What is wrong with a value or a key, and what it may be."""
    bound = describe(error)
    if error["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        bound = f"known: {', '.join(known)}"
        return f"unknown key {dotted}{hint(str(keys[-1]), known) or f'; {bound}'}", bound
    if is_of_key:
        spaced = "; write a space after its colon" if ":" in dotted else ""
        return f"unknown key {dotted}{spaced}; {bound}", bound
    if error["type"] == "missing":
        return f"{dotted} is missing; it has no default", bound
    if error["type"] in ("model_type", "model_attributes_type"):
        bound += f", some of {', '.join(_known_keys(keys))}"
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return f"{dotted + ': ' if dotted else ''}{bound}", bound
    return f"{dotted} = {shown(error['input'])}; {bound}", bound


def _written(error: ErrorDetails, data: Any) -> tuple[KeyPath, bool]:
    """The key of an error as it is written in the data, and whether the key itself is wrong and not its value.

    pydantic's own words among the parts (``[key]``, the branches of a union) lead to nothing in the data.
    """
    keys: list[str | int] = []
    inside = True
    for part in error["loc"]:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            data = data[part]
        stands_for_section = not isinstance(data, dict | list) and str(part).isidentifier()
        if inside or stands_for_section or error["type"] == "missing":
            keys.append(part)
    return tuple(keys), error["loc"][-1:] == ("[key]",) and not inside


def _known_keys(path: KeyPath) -> list[str]:
    """Keys of the section at a path; a section may lie in a mapping, under any key."""
    annotation: Any = Config
    for key in path:
        section = _section(annotation)
        if section is not None and key in section.model_fields:
            annotation = section.model_fields[str(key)].annotation
    section = _section(annotation)
    return sorted(section.model_fields) if section is not None else []


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section among an annotation and what it is made of, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)
