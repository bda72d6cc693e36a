import os
import re
from pathlib import Path

import pytest

from amcsearch.core import (
    DEEPEST,
    BadInputError,
    InfeasibleBudgetError,
    PruningPolicy,
    check_csv,
    parse_json,
    read_bytes,
    read_text,
)


def refused(read, *arguments) -> str:
    with pytest.raises(BadInputError) as caught:
        read(*arguments)
    return str(caught.value)


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    expected = {
        tmp_path: "is a directory, not a file",
        tmp_path / "pipe": "is a pipe, not a file",
        tmp_path / "link": "is a device",
        Path("/dev/zero"): "is a device",
        tmp_path / "none": "No such file",
        tmp_path / ("x" * 300): "File name too long",
        Path("a\0b"): "null",
    }
    for path, words in expected.items():
        line = refused(read_bytes, path, "plan", 10)
        assert words in line
        assert line.startswith("cannot read plan ")


def test_a_file_has_at_most_the_bytes_that_are_stated(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    assert read_bytes(path, "plan", 4) == b"1234"
    assert "has 4 bytes, at most 3 are read" in refused(read_bytes, path, "plan", 3)
    assert "at most 3" in refused(read_bytes, Path("/proc/self/status"), "plan", 3)  # the system says it is empty


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfa\r\n")
    assert read_text(path, "plan", 10) == "a\r\n"
    path.write_bytes("é".encode("latin-1"))
    assert "not UTF-8 text (byte 0)" in refused(read_text, path, "plan", 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ('{"a": 1, "a": 2}', "key 'a' is given 2 times"),
        ('[{"b": {"a": 1, "a": 1}}]', "key 'a' is given 2 times"),
        ("[NaN]", "NaN is no number of JSON"),
        ("-Infinity", "-Infinity is no number of JSON"),
        ("1e999", "1e999 is beyond what a number can hold"),
        ("9" * 31, "has 31 digits"),
        ("9" * 5000, "has 5000 digits"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_is_taken_strictly(text: str, words: str) -> None:
    line = refused(parse_json, text, "plan.json")
    assert line.startswith("plan.json")
    assert words in line


def test_json_of_the_greatest_depth_is_read() -> None:
    value = parse_json("[" * DEEPEST + "1e3" + "]" * DEEPEST, "plan.json")
    for _ in range(DEEPEST):
        (value,) = value
    assert value == 1000.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n", None),
        ("", "lacks the columns a, "),
        ("a\n1\n", "lacks the columns "),
        ("a,b,a\n", "column 'a' is there twice"),
        ("," * 1000, "has 1001 columns, at most 1000"),
        ('"' + "a" * 200_000, "not CSV"),
        ("a,b\n\0", "null character"),
    ],
)
def test_a_table_has_the_columns_it_needs(content: str, words: str | None) -> None:
    if words is None:
        check_csv(content, "rows", ["a", "b"])
    else:
        assert words in refused(check_csv, content, "rows", ["a", "b"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no", "is not JSON"),
        (b"[1]", "policy is a list"),
        (b"\xff", "not UTF-8"),
        (b'{"a": 1, "a": 2}', "given 2 times"),
        (b'{"a": -1}', "n_keep of 'a' is -1, must be a whole number of at least 0"),
        (b'{"a": -3}', "is -3"),
        (b'{"a": 1.0}', "is 1.0"),
        (b'{"a": true}', "is True"),
        (b'{"a": null}', "is None"),
        (b'{"a": 2147483648}', "at most 2147483647"),
        (b'{"a": 1' + b"0" * 30 + b"}", "31 digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_policy_file_is_read_or_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    line = refused(PruningPolicy.read, path)
    assert words in line
    assert str(path) in line


@pytest.mark.parametrize("kind", [BadInputError, InfeasibleBudgetError])
def test_an_error_is_one_line_that_can_be_read(kind: type[ValueError]) -> None:
    assert str(kind("first\n  second\x0bthird")) == "first second third"
    line = str(kind("name " + "x" * 10**6 + " cure"))
    assert len(line) <= 2000
    assert re.fullmatch("name x+ … x+ cure", line)
