"""A configuration file and its overrides → a valid ``Config``, and back to text.

Files named in a configuration: where they are looked for, and what they hold.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from amcsearch.config.messages import describe, hint, shown
from amcsearch.config.schema import Config
from amcsearch.config.yaml_text import KeyPath, parse_yaml, read_yaml, to_yaml
from amcsearch.core import BadInputError

__all__ = ["config_hash", "digest", "dump", "from_mapping", "json_schema", "load", "resolve", "resolve_spec"]

_PACKAGE = Path(__file__).resolve().parents[1]


def resolve(value: str, folder: Path, where: str, *, may_be_missing: bool = False) -> str:
    """Return the absolute path of a named file or folder.

    Looked for from the current folder, then ``folder`` (the configuration's), then inside the package, then beside it
    (a checkout).

    Raises:
        BadInputError: nowhere; names ``where`` it was asked, and the file.
    """
    path = Path(value).expanduser()
    roots = (Path.cwd(), folder.absolute(), _PACKAGE, _PACKAGE.parent)
    candidates = [root / path for root in roots]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None and not may_be_missing:
        looked = "" if path.is_absolute() else f" in {roots[0]}" + (f" or {roots[1]}" if roots[0] != roots[1] else "")
        raise BadInputError(f"{where}: file {value} does not exist{looked}")
    return os.path.abspath(found or candidates[0])


def resolve_spec(spec: str, folder: Path, where: str) -> str:
    """Return an import spec with the file of a ``file.py:callable`` absolute; any other comes back as it is.

    Raises:
        BadInputError: as ``resolve``.
    """
    path, colon, name = spec.rpartition(":")
    return resolve(path, folder, where) + colon + name if path.endswith(".py") else spec


def digest(value: str | None) -> str | None:
    """Replace an absolute path by a digest of what it holds; anything else comes back as it is.

    A folder is digested by its files' names and contents; a missing path by that it is missing.
    """
    if value is None or not Path(value.partition(".py:")[0]).is_absolute():
        return value
    stem, is_factory, name = value.partition(".py:")
    path = Path(stem + ".py") if is_factory else Path(value)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(str(file.relative_to(path)).encode() + b"\0")
        try:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        except FileNotFoundError:
            total.update(b"missing")
        except OSError as error:
            raise BadInputError(f"cannot read {file}: {error.strerror}") from error
    return total.hexdigest() + (":" + name if is_factory else "")


# Keys that name files. A missing latency table is no error yet: the same configuration is used to make it.
_PATHS: Final = (
    ("model", "factory"),
    ("model", "checkpoint"),
    ("data", "factory"),
    ("device", "profile"),
    ("device", "table"),
    ("search", "start"),
    ("prune", "policy"),
)


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration; ``overrides`` such as ``search.trials=50`` replace or add keys.

    Files named in it are looked for from the current folder, then from the configuration's folder, then beside the
    package, and become absolute.

    Raises:
        BadInputError: one line naming the file and line, the key, its value and what is expected: file missing,
            YAML syntax, repeated or unknown key, wrong type, value out of bounds, a named file that does not exist.
    """
    path = Path(path)
    data, lines = read_yaml(path)
    where = {keys: f"{path}:{line}" for keys, line in lines.items()}
    for text in overrides:
        _override(data, where, text)
    return _validated(data, where, str(path), path.parent)


def from_mapping(data: Mapping[str, Any], source: str = "configuration") -> Config:
    """Validate a configuration that is no file, such as a request; ``source`` names it in errors.

    Raises:
        BadInputError: as ``load``.
    """
    return _validated(json.loads(json.dumps(data)), {}, source, Path.cwd())


def dump(config: Config) -> str:
    """Every key with its value as YAML; ``load`` reads it back to an equal configuration."""
    return to_yaml(config.model_dump(mode="json"))


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits of the canonical JSON.

    Named files count by content, not by place: the hash survives a move to another folder or machine, and changes
    when a latency table is measured again.
    """
    data = config.model_dump(mode="json")
    for section, key in _PATHS:
        data[section][key] = digest(data[section][key])
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def json_schema() -> dict[str, Any]:
    """JSON schema of the configuration, for editors and other services."""
    return Config.model_json_schema()


def _override(data: dict[str, Any], where: dict[KeyPath, str], text: str) -> None:
    dotted, equals, value = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    source = f"--set {text}"
    if not equals or not all(keys):
        raise BadInputError(f"{source}: expected key.key=value, such as search.trials=50")
    section = data
    for i, key in enumerate(keys[:-1]):
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            raise BadInputError(f"{source}: {'.'.join(keys[: i + 1])} is {shown(inner)}, it has no keys to set")
        section = inner
    section[keys[-1]], _ = parse_yaml(value, source)
    where[keys] = source


def _validated(data: dict[str, Any], where: Mapping[KeyPath, str], source: str, folder: Path) -> Config:
    for section, key in _PATHS:
        inner = data.get(section)
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            at = f"{where.get((section, key), source)}: {section}.{key}"
            if key == "factory":
                inner[key] = resolve_spec(inner[key], folder, at)
            else:
                inner[key] = resolve(inner[key], folder, at, may_be_missing=key == "table")
    try:
        # Through JSON: strict about types, and lists become tuples.
        return Config.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise BadInputError(_line(error.errors(), where, source)) from error


def _line(errors: list[ErrorDetails], where: Mapping[KeyPath, str], source: str) -> str:
    error = errors[0]
    keys = tuple(key for key in error["loc"] if key != "[key]")
    at = next((where[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in where), source)
    dotted = ".".join(map(str, keys))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if error["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        return f"{at}: unknown key {dotted}{hint(str(keys[-1]), known) or '; known: ' + ', '.join(known)}{more}"
    if "[key]" in error["loc"]:
        return f"{at}: unknown key {dotted}; {describe(error)}{more}"
    if error["type"] == "missing":
        return f"{at}: {dotted} is missing; it has no default{more}"
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return f"{at}: {dotted + ': ' if dotted else ''}{describe(error)}{more}"
    return f"{at}: {dotted} = {shown(error['input'])}; {describe(error)}{more}"


def _known_keys(path: KeyPath) -> list[str]:
    model: type[BaseModel] = Config
    for key in path:
        annotation = model.model_fields[str(key)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return sorted(model.model_fields)
