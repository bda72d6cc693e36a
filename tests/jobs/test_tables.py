"""What a table already knows, kits of several configurations, and a table carried from another device."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from amcsearch.config import read_latency_table, write_latency_table
from amcsearch.config.loading import load
from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind
from amcsearch.core.network import NetworkSpec
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.table_check import check_table, is_of_machine
from amcsearch.jobs.tables import (
    VARIANTS,
    build_table,
    default_variants,
    known_share,
    make_kit,
    measured_here,
    needed_variants,
    subject_of,
)
from amcsearch.measure.kit.kit import measure_here
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.runtime.session import differences, provenance
from tests.measured_results import table_of_another_device

WriteConfig = Callable[..., Path]


class Silent(Observer):
    """Shows nothing."""


@pytest.fixture
def subject(write_config: WriteConfig) -> MeasuredSubject:
    return subject_of(load(write_config()))


def test_a_network_the_table_knows_needs_a_third_of_the_variants(subject: MeasuredSubject) -> None:
    network = subject.trace.network
    table = table_of_another_device(network)
    assert known_share(table.bind(network), network) == pytest.approx(1.0)
    assert needed_variants(0.0) == VARIANTS
    assert needed_variants(known_share(table.bind(network), network)) == VARIANTS / 3
    assert needed_variants(1.0, variants=15) == 12  # a table is not built of fewer


def test_layers_of_which_nothing_is_known_need_all(subject: MeasuredSubject) -> None:
    network = subject.trace.network
    linear = NetworkSpec(tuple(x for x in network.layers if x.kind is LayerKind.LINEAR), ())
    assert known_share(table_of_another_device(linear).bind(network), network) == 0.0
    assert needed_variants(known_share(table_of_another_device(linear).bind(network), network)) == VARIANTS


def test_borrowed_layers_do_not_count_as_known(subject: MeasuredSubject) -> None:
    network = subject.trace.network
    larger = [replace(x, in_size=(16, 16), out_size=(16, 16)) if x.in_size == (8, 8) else x for x in network.layers]
    spec = NetworkSpec(tuple(larger), ())
    share = known_share(table_of_another_device(network).bind(spec), spec)
    assert 0.0 < share < 0.1  # the head alone


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("device.threads=2", r"device\.threads is 1 in tiny and 2 in other"),
        ("device.dtype=int8", r"device\.dtype is float32 in tiny and int8 in other"),
        ("device.provider=OpenVINO", r"device\.provider is CPU in tiny and OpenVINO in other"),
    ],
)
def test_a_kit_has_one_setting(tmp_path: Path, write_config: WriteConfig, setting: str, words: str) -> None:
    one, other = load(write_config()), load(write_config(), [setting, "name=other"])
    with pytest.raises(BadInputError, match=words):
        make_kit([one, other], tmp_path / "kit.pyz", Silent())


@pytest.mark.usefixtures("openvino")
def test_a_provider_without_a_profile_makes_a_table_of_whole_runs(
    tmp_path: Path, write_config: WriteConfig, subject: MeasuredSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_config(), ["device.provider=OpenVINO"])
    assert default_variants(config) == 108
    plan = measurement_plan([subject], variants=12, held_out=3)
    quick = replace(plan, passes=2, rounds=2, sample_ms=0.05)
    monkeypatch.setattr("amcsearch.jobs.tables.measurement_plan", lambda *_, **__: quick)
    kit = make_kit([config], tmp_path / "kit.pyz", Silent())
    assert kit.run == f"python3 {kit.kit.name} -o result.jsonl"
    result = measured_here(quick, config, Silent(), out=tmp_path / "r.jsonl")
    assert result.provenance.provider == "OpenVINOExecutionProvider"
    table = build_table([tmp_path / "r.jsonl"])
    (entry,) = table.networks.values()
    assert entry.block is not None
    assert entry.accuracy is not None
    assert entry.calibration is not None
    assert entry.calibration.profile_scale is None
    assert {kernel.split(".")[0] for kernel in table.rows["kernel"]} == {"none", "whole"}
    write_latency_table(table, tmp_path / "table")
    model = read_latency_table(tmp_path / "table").bind(subject.trace.network)
    layers = subject.trace.network.layers
    assert model.predict(layers) == pytest.approx(table.bind(subject.trace.network).predict(layers), rel=1e-3)
    assert is_of_machine(table, config)
    with pytest.raises(BadInputError, match=r"set device\.provider=OpenVINO, or measure one"):
        check_table(table, load(write_config()), Silent())


def test_anchors_carry_another_devices_table_here(tmp_path: Path, subject: MeasuredSubject) -> None:
    plan = measurement_plan([subject], variants=0, held_out=6, anchors=5)
    quick = replace(plan, passes=2, rounds=2, sample_ms=0.05, profile_rounds=1)
    measure_here(quick, tmp_path / "r.jsonl")
    network = subject.trace.network
    source = table_of_another_device(network)
    table = build_table([tmp_path / "r.jsonl"], source=source)
    assert differences(table.provenance, provenance(1, 1)) == []
    assert table.networks["tiny"].anchors.from_cpu == "another"
    accuracy = table.networks["tiny"].accuracy
    assert accuracy is not None
    assert accuracy.variants == 6
    assert 0 < table.bind(network).predict(network.layers) < source.bind(network).predict(network.layers)
    with pytest.raises(BadInputError, match="two devices or settings"):
        build_table([tmp_path / "r.jsonl"], known=source, source=source)


def test_without_profiles_there_is_no_table(tmp_path: Path, subject: MeasuredSubject) -> None:
    plan = measurement_plan([subject], variants=0, held_out=3)
    measure_here(replace(plan, passes=2, rounds=2, sample_ms=0.05, profile_rounds=1), tmp_path / "r.jsonl")
    with pytest.raises(BadInputError, match="1 profiled variants, a table needs at least 4"):
        build_table([tmp_path / "r.jsonl"])
