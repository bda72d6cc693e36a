import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.records import Journal, checksum, encoded, parsed_lines

HEADER = {"kind": "header", "part": 1}
TIMING = {"kind": "timing", "model": "a", "samples_ms": [0.1, 1e-7, 3.0]}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def journal(path, *records, **doors):
    made = Journal(path, **doors)
    for record in records:
        made.append(record)
    made.close()
    return made


@given(st.dictionaries(st.text().filter(lambda key: key != "sum"), VALUES, max_size=5))
def test_a_record_survives_its_line(record):
    line = encoded(record)
    assert line.count(b"\n") == 1
    (read,) = parsed_lines(line, "f").records
    assert {key: value for key, value in read.items() if key != "sum"} == record


def test_the_checksum_does_not_depend_on_order_but_on_every_digit():
    assert checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1, "sum": "x"})
    assert checksum({"a": 0.1}) != checksum({"a": 0.10000000000000002})


def test_appending_goes_on_with_what_is_there(tmp_path):
    journal(tmp_path / "r", HEADER)
    second = journal(tmp_path / "r", TIMING)
    assert [record["kind"] for record in second.records] == ["header", "timing"]
    assert len((tmp_path / "r").read_text().splitlines()) == 2


def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(tmp_path):
    path = tmp_path / "r"
    head, tail = encoded(HEADER), encoded(TIMING)
    for size in range(len(tail)):
        path.write_bytes(head + tail[:size])
        opened = journal(path)
        assert len(opened.records) == 1
        assert opened.notes == ([f"{path}: line 2 is torn and was left out"] if size else [])
        assert path.read_bytes() == head
    for size in range(len(head)):
        path.write_bytes(head[:size])
        assert journal(path).records == []
        assert path.read_bytes() == b""


def test_an_edited_line_is_named(tmp_path):
    path = tmp_path / "r"
    path.write_bytes(encoded(HEADER) + encoded(TIMING).replace(b"3.0", b"2.0") + encoded(TIMING))
    with pytest.raises(DeviceError, match=r"r, line 2: the line does not match its checksum"):
        Journal(path)
    path.write_bytes(encoded(HEADER) + encoded(TIMING).replace(b"3.0", b"2.0"))
    with pytest.raises(DeviceError, match="line 2"):
        Journal(path)


def test_a_strangers_file_is_left_alone(tmp_path):
    (tmp_path / "r").write_text("my diary")
    with pytest.raises(DeviceError, match="is not a kit's result file"):
        Journal(tmp_path / "r")
    assert (tmp_path / "r").read_text() == "my diary"
    with pytest.raises(DeviceError, match="No such file or directory; name another file with -o"):
        Journal(tmp_path / "missing" / "r")


@pytest.mark.parametrize("door", ["write", "sync"])
def test_a_full_disk_leaves_whole_records(tmp_path, door):
    """The disk fills while the second record is written, after half of it or when it is synced."""
    calls = []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            return os.write(*arguments) if door == "write" else os.fsync(*arguments)
        if door == "write" and len(calls) == 2:
            return os.write(arguments[0], arguments[1][:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DeviceError, match="No space left on device; 1 records are safe: free some space and run this"):
        journal(tmp_path / "r", HEADER, TIMING, **{door: full})
    assert (tmp_path / "r").read_bytes() == encoded(HEADER)
    assert len(journal(tmp_path / "r", TIMING).records) == 2


def test_lines_with_carriage_returns_are_read():
    content = (encoded(HEADER) + encoded(TIMING)).replace(b"\n", b"\r\n")
    assert [json.loads(line)["kind"] for line in content.splitlines()] == ["header", "timing"]
    assert len(parsed_lines(content, "f").records) == 2
