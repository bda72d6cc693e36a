"""Does a latency table predict pruned networks nobody measured? Fresh variants in one run, beside two other ways.

    OMP_NUM_THREADS=1 python benchmarks/latency_prediction.py resnet20 mobilenetv2 resnet18 vgg16 vit language_model
        [--results FOLDER] [--earlier FOLDER]

For each network: variants that build the table (a quarter on multiples of 16 channels, a quarter of 8, half of any
width; ten are anchors), and 60 fresh ones on the same grids that take no part, all timed in interleaved passes over one
run, as a kit on a device would.

- noise floor: the first pass as prediction of the last.
- MACs-linear: a line through the building variants.
- isolated layers: one-layer models timed alone on a grid of widths, less the overhead of a call, summed: the table most
  tools ship (every layer of the dense network and of half its widths, scaled by MACs in between).
- five runs: the table of the other networks, the profiles of the dense network and five anchors, and the optimised
  graphs of the other building variants, whose times are left out.
- earlier table, ten anchors: with ``--earlier``, the results of an earlier run, what their table predicts, and the same
  brought up to date.

``--dtype int8``, ``--threads`` and ``--batch`` give the setting of all of them.
Results: ``latency_prediction.md``.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from amcsearch.costs.compute import Macs
from amcsearch.graph.tracing.trace import trace
from amcsearch.jobs.table_check import READ
from amcsearch.measure.build.maintenance import accuracy, anchored, merged
from amcsearch.measure.build.measured import measured_variants
from amcsearch.measure.build.table_builder import table_from_results, table_of
from amcsearch.measure.kit.kit import measure_here
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.measure.plan.roles import ANCHOR
from amcsearch.runtime.export import exported
from amcsearch.runtime.onnx_runtime import OnnxRuntime
from amcsearch.runtime.paired_latency import time_interleaved
from amcsearch.runtime.quantisation.quantisation import CONVERTERS, converted
from amcsearch.training.models import MODELS

KWARGS = {"vgg16": {"width": 64, "hidden": 512}}
FACTORY = {"vgg16": "vgg"}
RESNET50 = "resnet50"  # transformers', with random weights
ANCHORS, FEW = 10, 5
HEAD = (
    "| network | predictor | variants | mean error | median | worst | ±5 % | ±10 % | rank corr. |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def print_row(network, name, predicted, passes):
    """Print one row of ``HEAD``: errors of predictions (V,) in ms against the passes of V variants."""
    a = accuracy(np.asarray(predicted), passes)
    print(
        f"| {network} | {name} | {a.variants} | {a.mape:.2%} | {a.median:.2%} | {a.worst:.0%} "
        f"| {a.within_5:.0%} | {a.within_10:.0%} | {a.spearman:.4f} |",
        flush=True,
    )


def macs_line(building, layers):
    """Predict (V,) ms by a line through MACs of ``building``: layers of each variant, and their ms."""
    model = Macs()
    macs = [np.array([sum(map(model.layer_cost, v)) for v in group]) for group in (building[0], layers)]
    design = np.stack([macs[0], np.ones(len(macs[0]))], axis=1) / building[1][:, None]
    slope, constant = np.linalg.lstsq(design, np.ones(len(macs[0])), rcond=None)[0]
    return slope * macs[1] + constant


def _module(layer):
    if layer.kind == "conv":
        module = torch.nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding, layer.dilation,
            layer.conv_groups,
        )  # fmt: skip
        return module, torch.randn(1, layer.in_channels, *layer.in_size)
    return torch.nn.Linear(layer.in_channels, layer.out_channels), torch.randn(1, layer.in_size[0], layer.in_channels)


def _isolated(networks, overhead_ms, variants, setting):
    """Time every distinct convolution and linear layer of ``networks`` alone; sum the nearest by MACs."""
    model, rows = Macs(), {}

    def key(layer):
        return layer.kind, layer.kernel, layer.stride, layer.in_size, layer.is_depthwise

    layers = {x.resized(x.in_channels, x.out_channels) for n in networks for x in n if x.kind in ("conv", "linear")}
    for layer in layers:
        module, x = _module(layer)
        x = x.repeat(setting.batch, *[1] * (x.ndim - 1))
        file = converted(exported(module.eval(), x), setting.dtype, x.numpy())
        loaded = OnnxRuntime(setting.threads).load(file)
        ms = float(np.median(time_interleaved([loaded], x.numpy(), 8, 1.5, np.random.default_rng(0))))
        rows.setdefault(key(layer), []).append((model.layer_cost(layer), max(ms - overhead_ms, 1e-5)))

    def predict(layer):
        macs = model.layer_cost(layer)
        known, ms = min(rows[key(layer)], key=lambda row: abs(np.log(row[0] / macs)))
        return ms * macs / known

    chosen = ("conv", "linear")
    depthwise = [[x for x in v if x.kind in chosen and key(x) in rows] for v in variants]
    return [overhead_ms + sum(map(predict, layers)) for layers in depthwise]


def _network(name):
    """A network at its usual size, and one example input."""
    torch.manual_seed(0)
    if name == RESNET50:
        from transformers import ResNetConfig, ResNetForImageClassification

        return ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval(), torch.randn(1, 3, 224, 224)
    x = torch.randint(0, 64, (1, 64)) if name == "language_model" else torch.randn(1, 1, 32, 32)
    return MODELS[FACTORY.get(name, name)](**KWARGS.get(name, {})).eval(), x


def _measured(name, out, setting):
    """Measure a network's variants into ``out``."""
    model, x = _network(name)
    subject = MeasuredSubject(name, model, trace(model, x), x, None if x.is_floating_point() else 64)
    plan = measurement_plan(
        [subject],
        variants=setting.variants - ANCHORS,
        held_out=setting.fresh,
        anchors=ANCHORS,
        batch=setting.batch,
        dtype=setting.dtype,
        passes=setting.passes,
        seed=setting.seed,
    )
    measure_here(plan, out, setting.threads)


def benchmark(name, folder, setting):
    """Print the rows of one network, measured now or taken from ``folder``; return a line on time and weather."""
    out, start = folder / f"{name}.jsonl", time.perf_counter()
    now = not out.exists()
    if now:
        _measured(name, out, setting)
    result, table = _result(out), _table(out)
    seconds = time.perf_counter() - start
    network, building, held_out = measured_variants(result, name)
    passes_ms = [v.passes_ms for v in held_out]
    layers = [v.layers for v in held_out]
    print_row(name, "noise floor", [p[0] for p in passes_ms], [p[-1:] for p in passes_ms])
    print_row(name, "latency table", table.bind(network).predict_all(layers), passes_ms)
    timed = [v for v in building if v.passes_ms]
    whole = np.array([v.latency_ms for v in timed])
    print_row(name, "MACs-linear", macs_line(([v.layers for v in timed], whole), layers), passes_ms)
    if now:  # layers alone are timed beside the networks or not at all
        _print_isolated(name, network, layers, passes_ms, result.overhead_ms, setting)
    drift = result.drift
    return (
        f"{name}: {'table and fresh variants' if now else 'table of variants measured before'} in {seconds:.0f} s; "
        f"disturbed rounds {drift.disturbed_share:.0%}, largest drift {drift.largest:.3f}"
    )


def _print_isolated(name, network, layers, passes_ms, overhead_ms, setting):
    half = network.with_channels(network.policy(np.array([g.choices(g.unit)[(g.channels // g.unit - 1) // 2]
                                                          for g in network.groups])))  # fmt: skip
    isolated = _isolated([network.layers, half.layers], overhead_ms, layers, setting)
    print_row(name, "isolated layers", isolated, passes_ms)


@lru_cache
def _result(path):
    return read_results([path])[0]


@lru_cache
def _table(path):
    return table_from_results([_result(path)])


def _anchors(result, name):
    """The dense network and the anchors of a result."""
    network, building, _ = measured_variants(result, name)
    roles = {tuple(sorted(model.policy.items())) for model in result.models if model.role == ANCHOR}
    return [v for v in building if v.policy == network.dense or tuple(sorted(v.policy.items())) in roles]


def _print_few(names, folder):
    """Rows of every network as if it were new to a table of the others."""
    results = {name: _result(folder / f"{name}.jsonl") for name in names}
    tables = {name: _table(folder / f"{name}.jsonl") for name in names}
    for name, result in results.items():
        others = merged([table for other, table in tables.items() if other != name])
        network, building, held_out = measured_variants(result, name)
        few = _anchors(result, name)[: 1 + FEW]
        if len(few) <= FEW:  # measurements of an earlier day may lack them
            continue
        read = [replace(v, passes_ms=()) for v in building if v.policy not in {one.policy for one in few}]
        print_five_runs(name, result, others, network, [*few, *read[:READ]], held_out)


def print_five_runs(name, result, others, network, variants, held_out):
    """Print the row of a network that a table of ``others`` does not hold, placed in it by a few variants."""
    own = table_of(name, network, variants, [], result.overhead_ms, result.provenance, others)
    bound = merged([others, own]).bind(network)
    print_row(name, "five runs", bound.predict_all([v.layers for v in held_out]), [v.passes_ms for v in held_out])


def _print_later(names, folder, earlier):
    """Rows of tables of an earlier run, as they are and brought up to date, and of all networks together."""
    pooled = {"earlier table": ([], []), "ten anchors": ([], [])}
    for name in names:
        result, table = _result(folder / f"{name}.jsonl"), _table(earlier / f"{name}.jsonl")
        network, _, held_out = measured_variants(result, name)
        updated = anchored(table, name, network, _anchors(result, name))
        passes_ms = [v.passes_ms for v in held_out]
        for title, made in (("earlier table", table), ("ten anchors", updated)):
            predicted = made.bind(name).predict_all([v.layers for v in held_out])
            print_row(name, title, predicted, passes_ms)
            pooled[title][0].extend(predicted)
            pooled[title][1].extend(passes_ms)
    for title, (predicted, passes_ms) in pooled.items():
        print_row("all", title, predicted, passes_ms)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=[*MODELS, *FACTORY, RESNET50])
    parser.add_argument("--variants", type=int, default=72)
    parser.add_argument("--fresh", type=int, default=60)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--dtype", choices=list(CONVERTERS), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--results", type=Path, help="folder of measurements to keep, or to take up again")
    parser.add_argument("--earlier", type=Path, help="folder of the measurements of an earlier run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.results or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        said = [benchmark(name, folder, args) for name in args.networks]
        if len(args.networks) > 1:
            _print_few(args.networks, folder)
        if args.earlier:
            _print_later(args.networks, folder, args.earlier)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
