"""Every key of the configuration with its default and its meaning, as ``amcsearch list keys`` prints it."""

from pydantic import BaseModel

from amcsearch.config import described_keys, from_mapping


def test_keys_by_hand() -> None:
    keys = described_keys()
    assert keys["seed"] == "0; Decides splits, training, search and fine-tuning."
    assert keys["model.factory"].startswith("required; ")
    assert keys["budget"].startswith('{"macs": "0.5x"}; ')
    assert keys["model.pretrain"].startswith("null; ")  # a section that is left out
    assert keys["recovery.finetune.distillation.alpha"].startswith("0.7; ")
    assert {"search", "device.export", "data.splits"}.isdisjoint(keys)  # sections


def test_every_key_that_a_configuration_writes_is_described() -> None:
    config = from_mapping({"model": {"factory": None}, "data": {"factory": None}})
    keys = described_keys()

    def check(section: BaseModel, path: str) -> None:
        for name, value in section:
            if isinstance(value, BaseModel):
                check(value, f"{path}{name}.")
            else:
                assert path + name in keys

    check(config, "")
    assert all("; " in text for text in keys.values()), "a key without a meaning"
