"""Configurations, profiles and overrides that are odd in every way are one line, and never read for long."""

import os
from pathlib import Path

import pytest

from amcsearch.config import config_hash, from_mapping, load, read_device
from amcsearch.config.yaml_text import MOST_CHARACTERS, parse_yaml
from amcsearch.core.errors import BadInputError

VALID = 'model: {factory: "a.b:net"}\ndata: {factory: "a.b:data"}\n'


@pytest.fixture
def search(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(VALID)
    return path


def refused(read, *arguments) -> str:
    with pytest.raises(BadInputError) as caught:
        read(*arguments)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1\nb: *x\n", ":2:4: not valid YAML: anchors and aliases are not supported"),
        ("a: " + "[" * 65 + "]" * 65, "nested too deeply, at most 64 levels"),
        ("- " * 2000, "nested too deeply"),
        ("a: 1\na: 2\n", ":2: key a is given twice (first in line 1)"),
        ("a: !!python/object:os.system x\n", "tag tag:yaml.org,2002:python/object:os.system is not supported"),
        ("a: \0\n", "not valid YAML"),
        ("a: " + "9" * 5000, "at most 30 digits, this one has 5000"),
        ("a: 1e999\n", "beyond what a number can hold"),
        ('a: "\\ud800"\n', "half a character"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", "not valid YAML"),
        ("a: 1 #" + "x" * MOST_CHARACTERS, f"at most {MOST_CHARACTERS} are read as YAML"),
    ],
)
def test_odd_yaml_names_its_place(text: str, words: str) -> None:
    assert words in refused(parse_yaml, text, "search.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1e308", 1e308),
        ("a: -.inf", -float("inf")),
        ("a: " + "9" * 30, 10**30 - 1),
        ("a: " + "[" * 63 + "]" * 63, None),
    ],
)
def test_what_is_within_the_bounds_is_read(text: str, expected: object) -> None:
    value = parse_yaml(text, "search.yaml")[0]["a"]
    assert expected is None or value == expected


def test_a_configuration_may_begin_with_a_mark_and_end_lines_as_windows_does(search: Path) -> None:
    plain = config_hash(load(search))
    search.write_bytes(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode())
    assert config_hash(load(search)) == plain


def test_a_configuration_of_ten_megabytes_is_refused_by_its_size(search: Path) -> None:
    search.write_bytes(b"a: 1 # long\n" * 10**6)
    assert "it has 12000000 bytes, at most" in refused(load, search)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("." * 5000 + "=1", "expected a key of 1 to 16 parts"),
        (".".join("a" * 17) + "=1", "expected a key of 1 to 16 parts"),
        ("search..trials=1", "expected a key of 1 to 16 parts"),
        ("search. .trials=1", "expected a key of 1 to 16 parts"),
        ("=1", "expected a key of 1 to 16 parts"),
        ("search.trials", "expected key.key=value"),
        ("[key]=1", "unknown key [key]"),
        ("search.[key]=1", "unknown key search.[key]"),
        ("device.costs.mine={model: 'a.b:c', '[key]': 1}", "unknown key device.costs.mine.[key]; known: model, params"),
        ("budget.[key]=0.5x", "budget.[key]"),
        ("prune.policy={'[key]': 1.5}", "prune.policy.[key] = 1.5; expected a whole number"),
        ("prune.policy={a: {b: 1}}", "prune.policy.a = {'b': 1}; expected a whole number"),
        ("seed=" + "9" * 5000, "at most 30 digits"),
        ("seed=[" + "[" * 5000, "nested too deeply"),
        ("seed=&a [*a]", "anchors and aliases"),
        ("model=!!python/name:os.system", "is not supported"),
    ],
)
def test_odd_overrides_name_the_key(search: Path, override: str, words: str) -> None:
    assert words in refused(load, search, [override])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"seed.x": 1}, "amcsearch: seed.x: seed is 0, it has no keys to set"),
        ({"." * 5000: 1}, "expected a key of 1 to 16 parts"),
        ({"model.kwargs": {"x": object()}}, "cannot be written as JSON"),
        ({"model.kwargs": {"x": 10**5000}}, "cannot be written as JSON"),
        ({"seed": float("nan")}, "seed = nan; expected a whole number"),
    ],
)
def test_odd_settings_name_the_key(keys: dict[str, object], words: str) -> None:
    data = {"seed": 0, "model": {"factory": "a.b:net"}, "data": {"factory": "a.b:data"}}
    assert words in refused(from_mapping, data, "amcsearch", keys)


def test_settings_without_end_are_refused() -> None:
    endless: dict[str, object] = {}
    endless["model"] = endless
    assert "cannot be written as JSON" in refused(from_mapping, endless)


@pytest.mark.parametrize("key", ["model.checkpoint", "search.start", "prune.policy", "device.profile"])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "folder"])
def test_a_key_that_names_a_file_takes_no_device_pipe_or_folder(
    search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    words = {"/dev/zero": "a device", "pipe": "a pipe", "folder": "a folder|a directory"}[kind]

    def use() -> None:
        config = load(search, [f"{key}={kind}"])
        read_device(config.device.profile or "")

    line = refused(use)
    assert any(word in line for word in words.split("|"))


def test_a_factory_file_is_a_file(search: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.py")
    assert "a pipe, expected a file" in refused(load, search, [f"model.factory={tmp_path / 'net.py'}:net"])


def test_a_table_counts_by_its_own_files_alone(search: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.mkdir()
    for name in ("rows.csv", "device.yaml"):
        (table / name).write_text(name)
    (table / "deep").mkdir()
    (table / "deep" / "endless").symlink_to("/dev/zero")
    before = config_hash(load(search, [f"device.table={table}"]))
    (table / "notes.txt").write_text("x")
    assert config_hash(load(search, [f"device.table={table}"])) == before
    (table / "rows.csv").write_text("measured again")
    assert config_hash(load(search, [f"device.table={table}"])) != before


PROFILE = """
name: made up
word_bits: 16
mac_pj: {"16": 1.0}
memories:
  - {name: RF, capacity_bytes: 512, pj_per_byte: 1.0, source: made up}
  - {name: DRAM, capacity_bytes: null, pj_per_byte: 100.0, source: made up}
sources: {mac_pj: made up}
"""


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("512", "1" + "0" * 29, "capacity_bytes = 1000.*at most 1125899906842624"),
        ("100.0", "1e300", "pj_per_byte = 1e\\+300, .*at most 1e\\+12"),
        ("100.0", ".inf", "pj_per_byte = inf"),
        ("100.0", ".nan", "pj_per_byte = nan"),
        ("100.0", "-1", "pj_per_byte = -1"),
        ('"16": 1.0', '"16": 1.0, "016": 2.0', "name each width once"),
        ('"16": 1.0', '"' + "1" * 500 + '": 1.0', "must be a mapping of bits to pJ"),
        ("word_bits: 16", "word_bits: 16\nchannel_multiple: 100000000000", "channel_multiple = .*at most 65536"),
    ],
)
def test_a_profile_is_held_to_its_bounds(tmp_path: Path, before: str, after: str, words: str) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(PROFILE)
    assert read_device(path).word_bits == 16
    path.write_text(PROFILE.replace(before, after))
    with pytest.raises(BadInputError, match=words):
        read_device(path)
