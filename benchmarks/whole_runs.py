"""Does a latency table of whole runs alone predict pruned networks nobody measured? By providers without a profile.

    OMP_NUM_THREADS=1 python benchmarks/whole_runs.py resnet20 mobilenetv2 [--providers OpenVINO CPU] [--results FOLDER]
    OMP_NUM_THREADS=1 python benchmarks/whole_runs.py resnet20 mobilenetv2 --runtime executorch --providers XNNPACK

For each network and provider: variants that build the table (a quarter on multiples of 16 channels, a quarter of 8,
half of any width), and 60 fresh ones on the same grids that take no part, all timed in four interleaved passes over one
run.
On a busy host the fastest samples are the only ones that nothing disturbed, so here a latency is the fastest sample of
two passes, in the table and in what it is held to.

- noise floor: passes one and three as prediction of two and four.
- whole runs: the table of latencies alone.
- profiles: the table of the same runs with their profiles, where the provider gives them.

Results: ``latency_prediction.md``.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from latency_prediction import print_row

from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.build.measured import measured_variants
from amcsearch.measure.build.table_builder import table_of
from amcsearch.measure.kit.kit import measure_here
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.runtime import ONNXRUNTIME, RUNTIMES
from amcsearch.training.models import MODELS

BLACK_BOX = "any provider without a profile"
HEAD = (
    "| network | provider | predictor | variants | mean error | median | worst | ±5 % | ±10 % | rank corr. |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def measured(name, provider, out, setting):
    """Measure a network's variants into ``out``."""
    torch.manual_seed(0)
    x = torch.randint(0, 64, (1, 64)) if name == "language_model" else torch.randn(1, 1, 32, 32)
    model = MODELS[name]().eval()
    subject = MeasuredSubject(name, model, trace(model, x), x, None if x.is_floating_point() else 64)
    counts = {"variants": setting.variants, "held_out": setting.fresh, "passes": 4, "seed": setting.seed}
    if setting.runtime == ONNXRUNTIME:
        measure_here(measurement_plan([subject], **counts), out, provider=provider)
        return
    runtime = RUNTIMES[setting.runtime](provider=provider)
    measure_here(measurement_plan([subject], **counts, runtime=runtime), out, runtime=runtime)


def fastest(result, network):
    """Policy → fastest samples (ms) of the odd and of the even passes."""
    times = {}
    for model in (model for model in result.models if model.passes):
        ms = [float(timed.samples_ms.min()) for timed in model.passes]
        policy = network.dense if model.policy is None else model.policy
        times[tuple(sorted(policy.items()))] = (min(ms[::2]), min(ms[1::2] or ms))
    return times


def benchmark(name, provider, folder, setting):
    """Print the rows of one network by one provider, measured now or taken from ``folder``; return a line on them."""
    out = folder / f"{name}.{provider}.jsonl"
    if not out.exists():
        measured(name, provider, out, setting)
    (result,) = read_results([out])
    network, *parts = measured_variants(result, name)
    times = fastest(result, network)
    building, fresh = (
        [replace(v, passes_ms=times[tuple(sorted(v.policy.items()))]) for v in part if v.passes_ms] for part in parts
    )
    passes, layers, where = [v.passes_ms for v in fresh], [v.layers for v in fresh], f"{name} | {provider}"
    print_row(where, "noise floor", [odd for odd, _ in passes], [[even] for _, even in passes])
    black_box = replace(result.provenance, provider=BLACK_BOX, nchwc_block=0)
    table = table_of(name, network, building, [], result.overhead_ms, black_box)
    print_row(where, "whole runs", table.bind(name).predict_all(layers), passes)
    if any(variant.kernels for variant in building):
        profiled = table_of(name, network, building, [], result.overhead_ms, result.provenance)
        print_row(where, "profiles", profiled.bind(name).predict_all(layers), passes)
    entry = table.networks[name]
    return (
        f"{name} by {provider}: blocks of {entry.block or 1}, left-out runs {entry.calibration.left_out_mape:.1%}, "
        f"multiple {entry.channel_multiple}; disturbed rounds {result.drift.disturbed_share:.0%}"
    )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=list(MODELS))
    parser.add_argument("--providers", nargs="+", default=["OpenVINO", "CPU"])
    parser.add_argument("--runtime", choices=list(RUNTIMES), default=ONNXRUNTIME)
    parser.add_argument("--variants", type=int, default=120)
    parser.add_argument("--fresh", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--results", type=Path, help="folder of measurements to keep, or to take up again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.results or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        said = [benchmark(name, provider, folder, args) for name in args.networks for provider in args.providers]
    print("\n" + "\n".join(said) + f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
