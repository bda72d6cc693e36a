"""Markdown that is generated from the package: the command line, the configuration, the methods and the API.

A page of ``docs`` holds a line such as ``<!-- generate: command_line -->``; ``hooks.py`` puts the text in its place.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

import amcsearch
from amcsearch.cli.parser import make_parser
from amcsearch.config import json_schema
from amcsearch.methods import ALIASES, CRITERIA, GATES, SCHEDULES, SELECTORS
from amcsearch.search import AGENTS, REWARDS

__all__ = ["GENERATORS", "api", "command_line", "configuration", "methods"]

Schema = Mapping[str, Any]


def command_line() -> str:
    """One section a verb: what it does, its arguments and an example."""
    return "\n".join(_verbs(make_parser()))


def _verbs(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _verbs(command)
            return
    yield f"## `{parser.prog}`\n\n{_sentence(parser.description or '')}\n"
    yield from (f"    {line}" for line in _usage(parser))
    yield "\n| argument | default | meaning |\n|---|---|---|"
    for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):
        if not isinstance(action, argparse._HelpAction):
            yield f"| {_argument(action)} | {_shown_default(action)} | {_cell(action.help or '')} |"
    example = (parser.epilog or "").removeprefix("example: ")
    yield f"\nExample:\n\n    {example}\n" if example else ""


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=100)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    return formatter.format_help().rstrip().splitlines()


def _argument(action: argparse.Action) -> str:
    value = (
        "" if action.nargs == 0 else action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    )
    if action.choices is not None:
        value = "{" + ", ".join(map(str, action.choices)) + "}"
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    return f"{names} `{value}`".strip() if value else names


def _shown_default(action: argparse.Action) -> str:
    if action.default in (None, False, argparse.SUPPRESS, []):
        return "required" if action.required else ""
    return f"`{action.default}`"


def configuration() -> str:
    """One section a part of the configuration: every key with its type, default and meaning."""
    schema = json_schema()
    return "\n".join(_section(schema, schema["$defs"], (), {}))


def _section(schema: Schema, parts: Schema, path: tuple[str, ...], defaults: Schema) -> Iterator[str]:
    title = f"`{'.'.join(path)}`" if path else "The top level"
    yield f"## {title}\n\n{schema.get('description', '')}\n\n| key | type | default | meaning |\n|---|---|---|---|"
    sections = []
    for key, entry in schema["properties"].items():
        name = _section_name(entry)
        value = defaults.get(key, entry.get("default"))
        if name is not None and "properties" in parts[name]:
            sections.append((key, parts[name], value if isinstance(value, Mapping) else {}))
            meaning = entry.get("description") or parts[name].get("description", "")
            link = f"[a section](#{''.join((*path, key))})"
            default = "`null`" if value is None and key not in schema.get("required", ()) else ""
            yield f"| `{key}` | {link} | {default} | {_cell(meaning)} |"
            continue
        required = key in schema.get("required", ())
        default = "required" if required else f"`{_yaml(value)}`"
        yield f"| `{key}` | {_type(entry)} | {default} | {_cell(entry.get('description', ''))} |"
    yield ""
    for key, section, value in sections:
        yield from _section(section, parts, (*path, key), value)


def _section_name(entry: Schema) -> str | None:
    """Name of the section an entry refers to, also where it may be null."""
    for choice in (entry, *entry.get("anyOf", ()), *entry.get("allOf", ())):
        if "$ref" in choice:
            return str(choice["$ref"]).rpartition("/")[2]
    return None


_BOUNDS: Final = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _type(entry: Schema) -> str:
    """What a key takes, in words: ``integer > 0``, ``auto or integer ≥ 1``, ``one of sgd, adamw``."""
    if "anyOf" in entry:
        return " or ".join(_type(choice) for choice in entry["anyOf"])
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{_yaml(value)}`" for value in entry.get("enum", [entry.get("const")]))
    if "$ref" in entry:
        return "any value"
    kind = str(entry.get("type", "any value"))
    if kind == "string" and "pattern" in entry:
        return f"text like `{_cell(entry['pattern'])}`"
    if kind == "array":
        return f"list of {_type(entry['items'])}" if "items" in entry else "list"
    if kind == "object":
        return "mapping"
    bounds = [f"{sign} {_yaml(entry[name])}" for name, sign in _BOUNDS.items() if name in entry]
    return " ".join([{"string": "text", "null": "`null`"}.get(kind, kind), ", ".join(bounds)]).strip()


def _yaml(value: object) -> str:
    """One line of YAML; mappings and lists in braces, words bare."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


_METHODS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "criteria": ("Name one as `selection.criterion`, its parameters under `selection.params`.", CRITERIA),
    "selectors": ("Name one as `selection.selector`, its parameters under `selection.params`.", SELECTORS),
    "gates": ("Name one as `sparsify.method`, its parameters under `sparsify.params`.", GATES),
    "schedules": ("Name one as `sparsify.method`, its parameters under `sparsify.params`.", SCHEDULES),
    "agents": ("Name one as `search.agent`, its parameters under `search.agent_params`.", AGENTS),
    "rewards": ("Name one as `search.reward.name`, its parameters under `search.reward.params`.", REWARDS),
}


def methods(kind: str) -> str:
    """Every entry of one registry: names and parameters, and the formula of the module that defines them."""
    key, registry = _METHODS[kind]
    by_module: dict[str, list[str]] = {}
    for name, entry in registry.items():
        by_module.setdefault(entry.__module__, []).append(name)
    lines = [f"{key}\n"]
    for module, names in by_module.items():
        lines.append(f"## {', '.join(f'`{name}`' for name in names)}\n")
        lines.append(f"{inspect.getdoc(sys.modules[module]) or ''}\n")
        for name in names:
            heading = f"### `{name}`\n\n" if len(names) > 1 else ""
            lines.append(f"{heading}{_summary(registry[name])}\n\n{_parameters(registry[name])}")
    if kind == "criteria":
        lines.append("## Aliases\n\n| alias | criterion | parameters |\n|---|---|---|")
        lines += [f"| `{alias}` | `{name}` | `{_yaml(params)}` |" for alias, (name, params) in ALIASES.items()]
        lines.append("")
    return "\n".join(lines)


def _parameters(entry: Callable[..., object]) -> str:
    rows = [
        f"| `{parameter.name}` | {_cell(_annotation(parameter))} | {_parameter_default(parameter)} |"
        for parameter in inspect.signature(entry).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    if not rows:
        return "No parameters.\n"
    return "\n".join(["| parameter | type | default |", "|---|---|---|", *rows, ""])


def _annotation(parameter: inspect.Parameter) -> str:
    return f"`{inspect.formatannotation(parameter.annotation)}`".replace("typing.", "")


def _parameter_default(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return "required"
    default = parameter.default
    return f"`{default.__name__ if callable(default) else _cell(repr(default))}`"


def api() -> str:
    """The public names of the package as directives of mkdocstrings: functions, then classes, then values."""
    return "\n".join(_public(amcsearch))


def _public(module: ModuleType) -> Iterator[str]:
    names = [name for name in getattr(module, "__all__", ()) if not name.startswith("__")]
    values = {name: getattr(module, name) for name in names}
    groups = (
        ("Functions", {n: v for n, v in values.items() if inspect.isroutine(v)}),
        ("Classes", {n: v for n, v in values.items() if inspect.isclass(v)}),
    )
    for title, members in groups:
        if members:
            yield f"## {title}\n"
        for name, member in sorted(members.items(), key=lambda item: item[0].lower()):
            yield _directive(module, name, member)
    others = {n: v for n, v in values.items() if not inspect.isroutine(v) and not inspect.isclass(v)}
    if others:
        yield "## Registries and modules\n\n| name | what |\n|---|---|"
        yield from (f"| `{module.__name__}.{name}` | {_cell(_summary(value))} |" for name, value in others.items())


def _directive(module: ModuleType, name: str, member: Any) -> str:
    """``member`` by the module that defines it, under the name that users import."""
    path = f"{member.__module__}.{member.__qualname__}"
    return f'::: {path}\n    options:\n      heading: "{module.__name__}.{name}"\n      toc_label: "{name}"\n'


def _summary(value: object) -> str:
    """Docstring without its sections (``Args``, ``Raises``)."""
    if isinstance(value, Mapping):
        return ", ".join(map(str, value))
    text = inspect.getdoc(value) or ""
    for section in ("Args:", "Returns:", "Raises:"):
        text = text.partition(f"\n{section}")[0]
    return text.strip()


def _sentence(text: str) -> str:
    """``text`` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _cell(text: str) -> str:
    """``text`` on one line of a table; angle brackets outside code are no HTML."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


GENERATORS: Final[Mapping[str, Callable[[], str]]] = {
    "command_line": command_line,
    "configuration": configuration,
    "api": api,
    **{kind: (lambda kind=kind: methods(kind)) for kind in _METHODS},
}
