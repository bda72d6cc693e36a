"""A kit really run on this machine, and the table made of what it wrote."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.costs.latency.rows import GRAPH
from amcsearch.costs.latency.table import fingerprint
from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.build.measured import _passes_ms, measured_variants
from amcsearch.measure.build.table_builder import table_from_results
from amcsearch.measure.kit.kit import measure_here
from amcsearch.measure.kit.kit_results import TimedPass, read_results
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.runtime.session import differences, provenance


def subject(width, name):
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 32, 3, padding=1),
        nn.Flatten(),
        nn.Linear(2048, 4),
    ).eval()
    x = torch.zeros(1, 1, 8, 8)
    return MeasuredSubject(name, model, trace(model, x), x)


QUICK = {"passes": 2, "rounds": 2, "sample_ms": 0.05, "profile_rounds": 1}


def measured(path, *subjects, variants=12, held_out=4, seed=0, **counts):
    plan = measurement_plan(subjects, variants=variants, held_out=held_out, seed=seed, **counts)
    measure_here(replace(plan, **QUICK), path)
    return read_results([path])[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("kit") / "r.jsonl", subject(64, "small"))


def test_samples_of_quiet_rounds_make_a_passes_latency():
    reference = np.array([5.0, 5.1, 5.2, 8.0])  # the fourth round was disturbed
    assert _passes_ms([TimedPass(1, np.array([2.0, 2.06, 2.02, 2.0]), reference)], 5.0) == (2.02,)
    # and of the model alone the third
    assert _passes_ms([TimedPass(1, np.array([2.0, 2.02, 3.0, 2.0]), reference)], 5.0) == (2.01,)


def test_passes_with_few_quiet_rounds_do_not_count():
    calm, gusty, stormy = np.full(4, 1.0), np.array([1.0, 1.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.0, 2.0])
    passes = [
        TimedPass(n, np.array([4.0, 4.0, 4.1, 6.0]) + n, weather) for n, weather in enumerate((calm, gusty, stormy))
    ]
    assert _passes_ms(passes, 1.0) == (4.0, 5.0)  # three and two quiet rounds of four; one is less than half
    assert _passes_ms(passes, 0.5) == (4.0, 5.0, 6.0)  # nothing was quiet: the fastest of each
    assert _passes_ms([], 1.0) == ()


def test_variants_come_back_with_their_shapes_and_kernels(first):
    network, building, held_out = measured_variants(first, "small")
    assert network == subject(64, "small").trace.network
    assert (len(building), len(held_out)) == (13, 4)  # the dense reference builds too
    for variant in [*building, *held_out]:
        assert variant.layers == network.with_channels(variant.policy).layers
        assert 1 <= len(variant.passes_ms) <= 2
        assert variant.latency_ms > 0
    for variant in building:
        assert {run.layer for run in variant.kernels} == {layer.name for layer in variant.layers}
        assert all(run.profiled_ms >= 0 for run in variant.kernels)
    with pytest.raises(BadInputError, match=r"holds no network 'large'; it holds \['small'\]"):
        measured_variants(first, "large")


def test_a_result_becomes_a_table(first):
    network = subject(64, "small").trace.network
    table = table_from_results([first])
    model = table.bind(network)
    assert model.network == "small"
    assert table.networks["small"].fingerprint == fingerprint(network)
    assert differences(table.provenance, provenance(1, 1)) == []
    assert model.accuracy.variants == 4
    assert model.predict(network.layers) > 0
    assert {"drift", "notes"} <= set(table.networks["small"].as_mapping())


def test_graphs_that_were_never_run_say_what_layers_become(first, tmp_path):
    network = subject(64, "small").trace.network
    result = measured(tmp_path / "r.jsonl", subject(64, "small"), variants=0, anchors=4, lowered=6)
    _, building, _ = measured_variants(result, "small")
    read = [variant for variant in building if not variant.passes_ms]
    assert len(read) == 6
    table = table_from_results([result], [table_from_results([first])])
    model = table.bind(network)
    assert table.networks["small"].calibration.variants == 5
    for variant in read:
        for layer in variant.layers:
            kernels = {run.kernel for run in variant.kernels if run.layer == layer.name}
            assert kernels <= {kernel.kernel for kernel in model.kernel_latencies(layer)}
    assert GRAPH in set(table.rows["source"])


def test_a_second_result_extends_the_table_and_more_variants_of_a_network_count_together(first, tmp_path):
    more = measured(tmp_path / "m.jsonl", subject(64, "small"), seed=1)
    other = measured(tmp_path / "o.jsonl", subject(48, "other"))
    table = table_from_results([first, more])
    assert table.networks["small"].calibration.variants == 26  # both results hold the dense network
    parts = [measured_variants(result, "small") for result in (first, more)]
    taken = {variant.policy for _, building, _ in parts for variant in building}
    left = [variant for _, _, held_out in parts for variant in held_out if variant.policy not in taken]
    assert 0 < len(left) == table.networks["small"].accuracy.variants
    both = table_from_results([other], [table])
    assert set(both.networks) == {"small", "other"}
    layers = subject(64, "small").trace.network.layers
    network = subject(64, "small").trace.network
    assert both.bind(network).predict(layers) == pytest.approx(table.bind(network).predict(layers))
