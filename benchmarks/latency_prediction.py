"""Does the latency table predict pruned networks nobody measured? Fresh variants, in one run, beside two baselines.

    python benchmarks/latency_prediction.py resnet20 latency_tables/x86_epyc_avx512_resnet20
    python benchmarks/latency_prediction.py resnet20 NEW_FOLDER --build     # measures the table first

The table is frozen before the fresh variants (another seed) are drawn. Each is timed in two passes; the error of one
pass against the other is the noise floor. ``anchored`` multiplies the predictions by one factor from 10 further
variants measured now, for tables made earlier; ``MACs-linear`` is a line through 20 further variants, MACs its only
input.

Printed by the second command (AMD EPYC with AVX-512, 2 cores, ONNX Runtime 1.32.0, one thread, batch 1, other programs
running beside it on 2026-11-23; table of 48 variants built in 46 s):

    on the channel grid, 40 variants   MAPE    median  worst   ±5 %   Spearman
    noise floor (measured again)       0.80 %  0.48 %   3.2 %  100 %  0.998
    latency table                      0.43 %  0.31 %   1.5 %  100 %  0.999
    MACs-linear                        5.25 %  4.74 %  14.7 %   52 %  0.965
    any widths, 20 variants
    noise floor (measured again)       0.84 %  0.51 %   3.2 %  100 %  0.997
    latency table                      5.48 %  4.86 %   9.7 %   55 %  0.976
    MACs-linear                       28.87 %  22.8 %   111 %    0 %  0.986
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from amcsearch.config import read_latency_table, write_latency_table
from amcsearch.costs.compute import Macs
from amcsearch.graph.trace import trace
from amcsearch.runtime.calibration import accuracy, fit_line
from amcsearch.runtime.measuring import measure_variants
from amcsearch.runtime.session import provenance
from amcsearch.runtime.table_builder import build_table
from amcsearch.runtime.variants import random_policies
from amcsearch.training.models import MODELS

LINE, ANCHORS = 20, 10


HEAD = "| predictor | variants | MAPE | median | worst | ±5 % | ±10 % | Spearman |\n|---|---|---|---|---|---|---|---|"


def _row(name, predicted, first, second):
    a = accuracy(predicted, first, second)
    print(
        f"| {name} | {a['variants']} | {a['mape']:.2%} | {a['median']:.2%} | {a['worst']:.1%} | {a['within_5']:.0%} "
        f"| {a['within_10']:.0%} | {a['spearman']:.3f} |"
    )


def _sums(model, variants):
    return getattr(model, "constant", 0.0) + np.array([sum(map(model.layer_cost, v.layers)) for v in variants])


def _report(title, table, variants, line, anchors):
    first, second = (np.array([getattr(v, key) for v in variants]) for key in ("first_ms", "second_ms"))
    print(f"\n{title}\n\n{HEAD}")
    _row("noise floor (measured again)", first, second, second)
    _row("latency table", _sums(table, variants), first, second)
    factor = np.median([v.latency_ms for v in anchors] / _sums(table, anchors))
    _row(f"latency table, anchored ({factor:.3f})", factor * _sums(table, variants), first, second)
    scale, constant = fit_line(_sums(Macs(), line), np.array([v.latency_ms for v in line]))
    _row("MACs-linear", scale * _sums(Macs(), variants) + constant, first, second)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(MODELS))
    parser.add_argument("table", type=Path)
    parser.add_argument("--build", action="store_true", help="measure the table first and write it there")
    parser.add_argument(
        "--variants", type=int, default=40, help="fresh variants on the channel grid; half as many off it"
    )
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MODELS[args.network]().eval()
    x = torch.randint(0, 256, (1, 64)) if args.network == "language_model" else torch.randn(1, 1, 32, 32)
    found = trace(model, x)
    if args.build:
        start = time.perf_counter()
        write_latency_table(build_table(model, found, x), args.table)
        print(f"table built in {time.perf_counter() - start:.0f} s")
    table = read_latency_table(args.table)
    multiple = table.channel_multiple or 1
    rng = np.random.default_rng(args.seed)
    counts = [(args.variants, multiple), (args.variants // 2, 1), (LINE, multiple), (ANCHORS, multiple)]
    policies = [p for n, grid in counts for p in random_policies(found.network, n, grid, rng)]
    measured = measure_variants(model, found, x, policies, threads=1, rng=rng, profile=False)[1:]
    on, off, line, anchors = (
        measured[sum(n for n, _ in counts[:i]) : sum(n for n, _ in counts[: i + 1])] for i in range(len(counts))
    )
    here = provenance(1, 1)
    print(
        f"{args.network}: {here['cpu']}, {here['cores']} cores, ONNX Runtime {here['ort_version']}, one thread, batch 1"
    )
    print(f"{len(table.rows)} rows; {'; '.join(table.mismatches(here)) or 'table made on this kind of machine'}")
    _report(f"On the device's channel grid (multiples of {multiple})", table, on, line, anchors)
    _report("Any widths", table, off, line, anchors)


if __name__ == "__main__":
    main()
