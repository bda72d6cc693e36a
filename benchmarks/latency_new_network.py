"""Does a latency table predict a network of which it holds nothing, after five runs of it?

    OMP_NUM_THREADS=1 python benchmarks/latency_new_network.py --table FOLDER [--results FOLDER]
        [--networks mobilenetv1 regnet convnext resnet34 bert]

The table is that of the networks in ``--table`` (what ``latency_prediction.py --results`` kept). The new networks are
built by transformers, with random weights: blocks, widths, maps and fused operators that were not chosen with the table
in sight. Of each are timed and profiled the dense network and five pruned ones, and timed 60 fresh variants on and off
the channel grids, all in interleaved passes over one run; of 40 more the optimised graph is read. All as
``amcsearch table check --anchors 5`` does.

- noise floor: the first pass as prediction of the last.
- table alone: what the table says without any run.
- five runs: the same with what the five and the dense network say.
- MACs-linear: a line through the same six.

Results: ``latency_prediction.md``.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from latency_prediction import FEW, HEAD, macs_line, print_five_runs, print_row

from amcsearch.core.errors import BadInputError
from amcsearch.graph.tracing.trace import trace
from amcsearch.jobs.table_check import READ
from amcsearch.measure.build.maintenance import merged
from amcsearch.measure.build.measured import measured_variants
from amcsearch.measure.build.table_builder import table_from_results
from amcsearch.measure.kit.kit import measure_here
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan

VOCABULARY = 64


def _mobilenetv1():
    config = transformers.MobileNetV1Config(num_labels=10, image_size=96)
    return transformers.MobileNetV1ForImageClassification(config), torch.randn(1, 3, 96, 96)


def _regnet():
    config = transformers.RegNetConfig(
        num_labels=10, hidden_sizes=[64, 128, 256, 512], depths=[1, 2, 3, 1], groups_width=16, layer_type="x"
    )
    return transformers.RegNetForImageClassification(config), torch.randn(1, 3, 96, 96)


def _convnext():
    config = transformers.ConvNextConfig(num_labels=10, hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2])
    return transformers.ConvNextForImageClassification(config), torch.randn(1, 3, 96, 96)


def _resnet34():
    config = transformers.ResNetConfig(
        num_labels=10, layer_type="basic", depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 256, 512]
    )
    return transformers.ResNetForImageClassification(config), torch.randn(1, 3, 64, 64)


def _bert():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, intermediate_size=512
    )
    return transformers.BertForSequenceClassification(config), torch.randint(0, VOCABULARY, (1, 48))


NETWORKS = {
    "mobilenetv1": _mobilenetv1,
    "regnet": _regnet,
    "convnext": _convnext,
    "resnet34": _resnet34,
    "bert": _bert,
}


def _measured(name, out, setting):
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    model.eval()
    subject = MeasuredSubject(name, model, trace(model, x), x, None if x.is_floating_point() else VOCABULARY)
    plan = measurement_plan(
        [subject],
        variants=0,
        anchors=FEW,
        lowered=READ,
        held_out=setting.fresh,
        passes=setting.passes,
        seed=setting.seed,
    )
    measure_here(plan, out)


def benchmark(name, folder, known, setting):
    """Print the rows of one network, measured now or taken from ``folder``."""
    out = folder / f"{name}.jsonl"
    if not out.exists():
        _measured(name, out, setting)
    (result,) = read_results([out])
    network, few, held_out = measured_variants(result, name)
    passes_ms, layers = [v.passes_ms for v in held_out], [v.layers for v in held_out]
    print_row(name, "noise floor", [p[0] for p in passes_ms], [p[-1:] for p in passes_ms])
    try:
        alone = known.bind(network)
        print_row(name, "table alone", alone.predict_all(layers), passes_ms)
    except BadInputError as error:
        print(f"| {name} | table alone | {error} |")
    print_five_runs(name, result, known, network, few, held_out)
    timed = [v for v in few if v.passes_ms]
    whole = np.array([v.latency_ms for v in timed])
    print_row(name, "MACs-linear", macs_line(([v.layers for v in timed], whole), layers), passes_ms)
    return f"{name}: disturbed rounds {result.drift.disturbed_share:.0%}"


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--table", type=Path, required=True, help="folder of the measurements that make the table")
    parser.add_argument("--results", type=Path, help="folder of measurements to keep, or to take up again")
    parser.add_argument("--fresh", type=int, default=60)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = merged([table_from_results(read_results([path])) for path in sorted(args.table.glob("*.jsonl"))])
    print(HEAD)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.results or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        said = [benchmark(name, folder, known, args) for name in args.networks]
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
