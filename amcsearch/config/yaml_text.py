"""YAML in and out: the plain part of YAML 1.2, with the line of every key kept for error messages.

Departures from PyYAML's defaults, each a known trap: ``1e-3`` is a number, ``on`` and ``no`` are text, a repeated
key is an error, dates are text, and anchors are refused (a few hundred bytes of them can expand to gigabytes).
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from amcsearch.core import DEEPEST, MIB, BadInputError, read_text

__all__ = ["KeyPath", "parse_mapping", "parse_yaml", "read_yaml", "to_yaml"]

KeyPath = tuple[str | int, ...]

MOST_CHARACTERS: Final = MIB // 4
"""Of a YAML text that people write; PyYAML takes seconds for so many."""
_DIGITS: Final = 30  # of a whole number: no count, seed or size has more

_RESOLVERS: Final = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not supported", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number has at most {_DIGITS} digits, this one has {len(text)}")
    return int(text)


def _number(text: str) -> float:
    special = text.lower().lstrip("+-")
    number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(number) and special != ".inf":
        raise ValueError("it is beyond what a number can hold")
    return number


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    return text


_SCALARS: Final[dict[str, Callable[[str], Any]]] = {
    "tag:yaml.org,2002:null": lambda _: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": _whole,
    "tag:yaml.org,2002:float": _number,
    "tag:yaml.org,2002:str": _text,
}


def parse_yaml(text: str, source: str, most_characters: int = MOST_CHARACTERS) -> tuple[Any, dict[KeyPath, int]]:
    """Read YAML as plain values, and the line (from 1) of every key.

    ``source`` names the text in errors.

    Raises:
        BadInputError: a syntax error, a repeated key, a key that is not text, an anchor, a tag, more than ``DEEPEST``
            levels, a number beyond the computer's, or too many characters; names the line.
    """
    if len(text) > most_characters:
        raise BadInputError(f"{source}: it has {len(text)} characters, at most {most_characters} are read as YAML")
    lines: dict[KeyPath, int] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        return (None if node is None else _value(node, (), lines, source)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise BadInputError(f"{source}{where}: not valid YAML: {error.problem or error.context}") from error
    except BadInputError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML converts some numbers without a check
        raise BadInputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise BadInputError(
            f"{source}: nested too deeply, at most {DEEPEST} levels are read; write it flatter"
        ) from error


def _value(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str) -> Any:
    if len(path) > DEEPEST:
        raise RecursionError
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), lines, source) for i, item in enumerate(node.value)]
    where = f"{source}:{node.start_mark.line + 1}"
    convert = _SCALARS.get(node.tag)
    if convert is None:
        raise BadInputError(f"{where}: tag {node.tag:.60} is not supported; write a plain value")
    try:
        return convert(node.value)
    except ValueError as error:
        raise BadInputError(f"{where}: {node.value[:40]!r} cannot be read: {error}") from error


def _mapping(node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], source: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = f"{source}:{key_node.start_mark.line + 1}"
        key = _value(key_node, path, {}, source)
        if not isinstance(key, str):
            raise BadInputError(f"{where}: key {key!r:.60} must be text; write it in quotes")
        here = (*path, key)
        if key in result:
            dotted = ".".join(map(str, here))
            raise BadInputError(f"{where}: key {dotted} is given twice (first in line {lines[here]}); keep one")
        lines[here] = key_node.start_mark.line + 1
        result[key] = _value(value_node, here, lines, source)
    return result


def read_yaml(
    path: Path, label: str = "configuration", most_characters: int = MOST_CHARACTERS
) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Read a YAML file that holds a mapping; returns it with the line of every key.

    Raises:
        BadInputError: as ``read_text`` and ``parse_yaml``, or the file holds no mapping.
    """
    return parse_mapping(read_text(path, label, most_characters), str(path), most_characters)


def parse_mapping(
    text: str, source: str, most_characters: int = MOST_CHARACTERS
) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Read YAML that is a mapping, as ``parse_yaml``.

    Raises:
        BadInputError: it is something else, or as ``parse_yaml``.
    """
    data, lines = parse_yaml(text, source, most_characters)
    if not isinstance(data, dict):
        kinds = {type(None): "nothing", str: "text without a key", list: "a list"}
        content = kinds.get(type(data), f"a {type(data).__name__}")
        raise BadInputError(f"{source}: expected keys with values, such as seed: 0; it holds {content}")
    return data, lines


def to_yaml(value: Any) -> str:
    """Write plain values (mappings, lists, text, numbers, None) as YAML that ``parse_yaml`` reads back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
