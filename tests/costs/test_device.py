"""Profiles: every number has a source, and the shipped files hold the published numbers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from amcsearch.core.errors import BadInputError
from amcsearch.costs.device import DeviceProfile

FOLDER = Path(__file__).parents[2] / "configs" / "devices"
GOOD: dict[str, Any] = {
    "name": "toy",
    "word_bits": 16,
    "mac_pj": {"16": 1},
    "memories": [
        {"name": "buffer", "capacity_bytes": 1024, "pj_per_byte": 1, "source": "a paper"},
        {"name": "DRAM", "capacity_bytes": None, "pj_per_byte": 100.0, "source": "a paper"},
    ],
    "sources": {"mac_pj": "a paper"},
}
BUFFER, DRAM = GOOD["memories"]


def shipped(name: str) -> DeviceProfile:
    return DeviceProfile.from_mapping(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def test_defaults() -> None:
    profile = DeviceProfile.from_mapping(GOOD)
    assert (profile.static_power_mw, profile.channel_multiple, profile.weight_bits) == (0.0, None, None)
    assert [memory.map_share for memory in profile.memories] == [0.0, 0.0]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_valid_and_named_after_their_file(path: Path) -> None:
    assert shipped(path.stem).name == path.stem


def test_a_mac_of_other_widths_scales_with_the_product_of_its_bits() -> None:
    device = DeviceProfile.from_mapping({**GOOD, "mac_pj": {"8": 1.0, "32": 8.0}})
    assert device.mac_energy_pj(8, 8) == 1.0
    assert device.mac_energy_pj(32, 32) == 8.0
    assert device.mac_energy_pj(8, 32) == 8.0 * 8 / 32
    assert device.mac_energy_pj(16, 16) == 1.0 * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mac_pJ": 1.0}, r"unknown keys \['mac_pJ'\]"),
        ({"word_bits": 12}, r"word_bits = 12, must be one of \(8, 16, 32\)"),
        ({"weight_bits": 4}, "weight_bits = 4, must be one of"),
        ({"word_bits": True}, "^device profile: word_bits = True, must be a whole number$"),
        ({"mac_pj": "much"}, "mac_pj = 'much', must be a mapping of bits to pJ"),
        ({"mac_pj": {16: 1.0}}, "must be a mapping of bits to pJ"),
        ({"mac_pj": {}}, "mac_pj is empty"),
        ({"mac_pj": {"12": 1.0}}, "mac_pj bits = 12, must be one of"),
        ({"mac_pj": {"16": -1.0}}, "mac_pj of 16 bits = -1.0, must be a finite number"),
        ({"sources": {}}, "mac_pj has no source"),
        ({"static_power_mw": 5.0}, "static_power_mw has no source"),
        ({"channel_multiple": 0}, "channel_multiple = 0, must be at least 1 and at most 65536, or null$"),
        ({"channel_multiple": 1.5}, "channel_multiple = 1.5, must be a whole number or null"),
        ({"sources": ["a paper"]}, "must be a mapping of a key to its source"),
        ({"memories": "DRAM"}, "must be a list of memories"),
        ({"memories": [DRAM]}, r"capacities \[None\]; give two or more"),
        ({"memories": [DRAM, BUFFER]}, "and DRAM last with null"),
        ({"memories": [BUFFER, DRAM, DRAM]}, r"capacities \[1024, None, None\]; give two or more"),
        ({"memories": [BUFFER, {**BUFFER, "capacity_bytes": 512}, DRAM]}, "must grow outwards"),
        ({"memories": [{**BUFFER, "size": 1}, DRAM]}, r"memory 1 has unknown keys \['size'\]"),
        ({"memories": [{"name": "buffer"}, DRAM]}, "memory 1 lacks"),
        ({"memories": [{**BUFFER, "pj_per_byte": "1"}, DRAM]}, "pj_per_byte = '1', must be a number"),
        ({"memories": [{**BUFFER, "pj_per_byte": float("nan")}, DRAM]}, "pj_per_byte = nan, must be a finite number"),
        ({"memories": [{**BUFFER, "capacity_bytes": 0}, DRAM]}, "capacity_bytes = 0, must be at least 1"),
        ({"memories": [{**BUFFER, "source": ""}, DRAM]}, "memory 'buffer' has no source"),
        ({"memories": [{**BUFFER, "map_share": 0.5}, DRAM]}, "map_share = 0.5, must be from 0 to 1/3"),
        ({"memories": [{**BUFFER, "map_share": 0.2}, BUFFER, DRAM]}, "an outer one must hold no less"),
    ],
)
def test_bad_profiles_name_the_value_and_the_bound(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        DeviceProfile.from_mapping({**GOOD, **change})


def test_missing_keys_are_named() -> None:
    with pytest.raises(BadInputError, match=r"lacks \['word_bits', 'mac_pj', 'memories'\]"):
        DeviceProfile.from_mapping({"name": "toy"})
