"""One clear line for everything a configuration can get wrong."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic_core import ErrorDetails

__all__ = ["describe", "hint", "shown"]

_EXPECTED: Final = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "list_type": "a list",
    "tuple_type": "a list",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entries",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "letters, digits, dot, dash and underscore only",
}


def describe(error: ErrorDetails) -> str:
    """Say what was expected instead of a rejected value: ``expected a whole number``."""
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"])
    if error["type"] in _EXPECTED:
        quoted = f'; write it in quotes: "{error["input"]}"' if _is_number_for_text(error) else ""
        return "expected " + _EXPECTED[error["type"]].format(**context) + quoted
    message = error["msg"]
    return message[:1].lower() + message[1:]


def _is_number_for_text(error: ErrorDetails) -> bool:
    return error["type"] == "string_type" and type(error["input"]) in (int, float)


def hint(name: str, known: Iterable[str] | Mapping[str, Any]) -> str:
    """Name the nearest known name: `` , did you mean 'x'?``, or nothing when none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def shown(value: Any, limit: int = 60) -> str:
    """Write a value on one line of at most ``limit`` characters, as YAML would name its constants."""
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    try:
        text = repr(value) if text is None else text
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= limit else text[: limit - 1] + "…"
