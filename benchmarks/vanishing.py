"""Blocks that may vanish beside widths alone, at the same latency budget: metric and latency measured in pairs.

    OMP_NUM_THREADS=1 python benchmarks/vanishing.py run [--networks digits-vit digits] [--shares 0.3 0.25 0.2]
        [--seeds 0 1 2] [--table x86_epyc_avx512]
    python benchmarks/vanishing.py report

For a network, a seed and a share of the dense network's latency as the table predicts it, ``ladder``, which begins with
the exact allocation of ``obc``'s errors, is run twice: with ``search.vanish: true`` and
without. Both may narrow a group to ``max_pruning_ratio`` 0.95 on any multiple of channels that the table offers
(``--multiple auto``) or that is named. The best policy on the search split is judged on the test split, at
once and after the same short fine-tuning. All networks of a seed are then measured in ONNX Runtime in the same
interleaved rounds, beside the dense one; ``doubt`` says why a measurement decides nothing.

``run`` appends to ``benchmarks/vanishing.csv`` and leaves out what stands there.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from defaults import Remembering, Silent, append, best_of, searched, stored
from torch import nn

from amcsearch.config.loading import load
from amcsearch.core import InfeasibleBudgetError
from amcsearch.graph import duplicate
from amcsearch.jobs.delivery import Exports
from amcsearch.jobs.device import load_device
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.workload import judged_batches
from amcsearch.training.loop import evaluate

CONFIGS = Path(__file__).parents[1] / "configs/searches"
CSV = Path(__file__).with_suffix(".csv")
FIELDS = (
    *("network", "seed", "share", "vanish", "gone", "predicted", "dense", "search", "pruned", "tuned"),
    *("ratio", "ratio_low", "ratio_high", "measured_ms", "dense_ms", "doubt", "seconds"),
)
COMMON = ("search.max_pruning_ratio=0.95", "selection={selector: obc}")


@dataclass(frozen=True)
class Found:
    """What a search came to, before it is measured."""

    row: dict[str, object]
    model: nn.Module


def job_of(network: str, seed: int, table: str) -> tuple[Job, float]:
    """Train the dense network of a seed, rank its channels, and judge it on the test split."""
    settings = [*COMMON, f"device.table={table}", f"seed={seed}", f"data.kwargs.seed={seed}", "search.vanish=true"]
    config = load(CONFIGS / f"{network}.yaml", [*settings, "budget={latency_ms: 0.5x}"])
    job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
    return job, evaluate(job.workload.model, judged_batches(config, job.workload, "test"), job.workload.task)[1]


def found(network: str, job: Job, share: float, vanish: bool, options: argparse.Namespace) -> Found | None:
    """Search within a share of the dense latency; None where no policy meets it."""
    begun = time.perf_counter()
    keys = [*COMMON, f"device.table={options.table}", f"search.vanish={str(vanish).lower()}"]
    keys += [f"device.channel_multiple={options.multiple}", f"budget={{latency_ms: {share}x}}"]
    config = load(CONFIGS / f"{network}.yaml", keys)
    try:
        limited = replace(job, device=load_device(config, job.workload, config.limits))
    except InfeasibleBudgetError:
        return None
    trials = searched(limited, Remembering(job.evaluator, {}), "ladder", "obc", options.evaluations)
    best = best_of(trials)
    model = duplicate(job.evaluator.pruned(best.policy))
    test, task = judged_batches(job.config, job.workload, "test"), job.workload.task
    pruned = evaluate(model, test, task)[1]
    finetune = job.config.recovery.finetune
    assert finetune is not None
    short = finetune.model_copy(update={"epochs": options.epochs})
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(job.config, short, job.workload, model, Silent(), given=job.given, folder=Path(folder))
    predicted = best.cost["latency_ms"] / limited.device.dense["latency_ms"]
    row = {
        "gone": " ".join(name for name, kept in best.policy.items() if kept == 0),
        "predicted": round(predicted, 4),
        "search": best.evaluation.metric,
        "pruned": pruned,
        "tuned": evaluate(model, test, task)[1],
        "seconds": round(time.perf_counter() - begun, 1),
    }
    return Found(row, model)


def rows_of(options: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, object]]:
    """Run what is not done of every seed and network; the networks of a seed are measured together."""
    for seed in options.seeds:
        for network in options.networks:
            cases = [(share, vanish) for share in options.shares for vanish in (False, True)]
            cases = [(s, v) for s, v in cases if (network, str(seed), str(s), str(v)) not in done]
            if not cases:
                continue
            job, dense = job_of(network, seed, options.table)
            results = [found(network, job, share, vanish, options) for share, vanish in cases]
            exports = Exports(job)
            files = [exports.in_float32(result.model) for result in results if result is not None]
            latencies = iter(exports.measure_models(files).latencies if files else ())
            for (share, vanish), result in zip(cases, results, strict=True):
                row = {"network": network, "seed": seed, "share": share, "vanish": vanish, "dense": dense}
                if result is not None:
                    x = next(latencies)
                    measured = {"ratio": x.ratio, "ratio_low": x.ratio_low, "ratio_high": x.ratio_high}
                    row |= {**result.row, **measured, "measured_ms": x.pruned_ms, "dense_ms": x.dense_ms}
                    row["doubt"] = x.doubt or ""
                yield row


def spread(values: list[float], places: int = 1) -> str:
    """Mean and standard deviation."""
    text = f"{statistics.fmean(values):.{places}f}"
    return text + (f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else "")


def report(options: argparse.Namespace) -> None:
    """Print a line a network, share and choice: means over the seeds."""
    del options
    rows = defaultdict(list)
    for row in stored(CSV):
        rows[row["network"], row["share"], row["vanish"]].append(row)
    print("| network | limit | may vanish | seeds | branches gone | predicted | measured | pruned | tuned | dense |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (network, share, vanish), all_rows in sorted(rows.items()):
        kept = [row for row in all_rows if row["ratio"]]
        head = f"| {network} | {share}x | {'yes' if vanish == 'True' else 'no'} | {len(kept)} of {len(all_rows)}"
        if not kept:
            print(f"{head} | – | infeasible | – | – | – | – |")
            continue
        gone = spread([float(len(row["gone"].split())) for row in kept])
        costs = [spread([float(row[field]) for row in kept], 3) for field in ("predicted", "ratio")]
        shares = [spread([100 * float(row[field]) for row in kept]) for field in ("pruned", "tuned", "dense")]
        print(" | ".join([head, gone, *costs, *shares]) + " |")


def run(options: argparse.Namespace) -> None:
    """Append to the table what it lacks."""
    done = {tuple(row[field] for field in FIELDS[:4]) for row in stored(CSV)}
    append(CSV, FIELDS, rows_of(options, done))


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("--networks", nargs="+", default=["digits-vit", "digits"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.25, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", default="x86_epyc_avx512")
    parser.add_argument("--multiple", default="auto", help="of channels")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=2, help="of the fine-tuning")
    options = parser.parse_args()
    {"run": run, "report": report}[options.part](options)


if __name__ == "__main__":
    main()
