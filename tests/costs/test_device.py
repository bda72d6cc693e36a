"""Profiles: every number has a source, and the shipped files hold the published numbers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from amcsearch.core import BadInputError
from amcsearch.costs import DeviceProfile

FOLDER = Path(__file__).parents[2] / "configs" / "devices"
GOOD: dict[str, Any] = {
    "name": "toy",
    "word_bits": 16,
    "mac_pj": 1,
    "dram_pj_per_byte": 100.0,
    "sources": {"mac_pj": "a paper", "dram_pj_per_byte": "a paper"},
}


def shipped(name: str) -> DeviceProfile:
    return DeviceProfile.from_mapping(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def test_defaults() -> None:
    profile = DeviceProfile.from_mapping(GOOD)
    assert (profile.static_power_mw, profile.channel_multiple) == (0.0, None)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_valid_and_named_after_their_file(path: Path) -> None:
    assert shipped(path.stem).name == path.stem


def test_published_constants() -> None:
    eyeriss = shipped("eyeriss_relative")
    assert eyeriss.dram_pj_per_byte * 2 / eyeriss.mac_pj == 200
    horowitz = shipped("horowitz_45nm")
    assert horowitz.mac_pj == pytest.approx(3.7 + 0.9)
    assert horowitz.dram_pj_per_byte * 4 == 640


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mac_pJ": 1.0}, r"unknown keys \['mac_pJ'\]"),
        ({"word_bits": 12}, r"word_bits = 12, must be one of \(8, 16, 32\)"),
        ({"word_bits": True}, "word_bits = True, must be int"),
        ({"mac_pj": "much"}, "mac_pj = 'much', must be float"),
        ({"mac_pj": -1.0}, "mac_pj = -1.0, must be a finite number"),
        ({"dram_pj_per_byte": float("nan")}, "dram_pj_per_byte = nan"),
        ({"static_power_mw": 5.0}, "static_power_mw has no source"),
        ({"channel_multiple": 0}, "channel_multiple = 0, must be at least 1"),
        ({"channel_multiple": 1.5}, "channel_multiple = 1.5, must be int or null"),
        ({"sources": ["a paper"]}, "must be a mapping of a key to its source"),
    ],
)
def test_bad_profiles_name_the_value_and_the_bound(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        DeviceProfile.from_mapping({**GOOD, **change})


def test_missing_keys_are_named() -> None:
    with pytest.raises(BadInputError, match=r"lacks \['word_bits', 'mac_pj', 'dram_pj_per_byte'\]"):
        DeviceProfile.from_mapping({"name": "toy"})
