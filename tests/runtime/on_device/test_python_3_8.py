"""Devices have old Pythons and nothing else: what travels must parse there and import only what they have."""

import ast
import sys
from pathlib import Path

import pytest

import amcsearch.runtime.on_device as package
from amcsearch.measure.kit.kit import MAIN

FILES = sorted(Path(package.__file__).parent.glob("*.py"))
ALLOWED = {"numpy", "onnxruntime", "amcsearch"}
NEWER = {"removeprefix", "removesuffix", "cache", "cached_property", "lcm", "randbytes", "UTC", "pairwise", "bit_count"}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def newer_calls(tree):
    """Names and arguments that Python 3.8 does not know."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NEWER:
            yield node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"zip", "dataclass"}:
            yield from (k.arg for k in node.keywords if k.arg in {"strict", "slots", "kw_only"})


@pytest.mark.parametrize(
    "source", [*(path.read_text() for path in FILES), MAIN], ids=[*(p.stem for p in FILES), "MAIN"]
)
def test_the_file_runs_on_python_3_8(source):
    tree = ast.parse(source, feature_version=(3, 8))
    for name in imported(tree):
        root = name.partition(".")[0]
        assert root in sys.stdlib_module_names or root in ALLOWED
        assert root != "amcsearch" or name.startswith("amcsearch.runtime.on_device")
    assert not list(newer_calls(tree))


@pytest.mark.parametrize("path", [p for p in FILES if len(p.read_text().splitlines()) > 1], ids=lambda path: path.stem)
def test_annotations_are_not_evaluated(path):
    names = list(imported(ast.parse(path.read_text())))
    assert not names or names[0] == "__future__"


def test_what_python_3_8_lacks_is_seen():
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass", feature_version=(3, 8))
    assert list(newer_calls(ast.parse("zip(a, b, strict=True)\n'x'.removesuffix('y')"))) == ["strict", "removesuffix"]
