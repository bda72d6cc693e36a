"""Which epoch of the fine-tuning to keep: rules compared by the test split, over networks, budgets and seeds.

    OMP_NUM_THREADS=1 python benchmarks/kept_epoch.py run [--networks digits …] [--seeds 0 1 2] [--evaluations 20]
        [--budgets "latency_ms 0.5x" …] [--rates 1 0.2]
    python benchmarks/kept_epoch.py report

``run`` appends a line an epoch to ``benchmarks/kept_epoch.csv``, epoch 0 being the pruned network before the training;
a search that stands there already is not run again. A seed changes the data split, the training, the search and the
fine-tuning. The configuration's agent searches for a few evaluations, its best policy on the search split is fine-tuned
by the configuration's recipe at each learning rate, and every epoch is judged on both splits. ``--rates`` are shares of
the configuration's learning rate; all that one run adds begin with the same pruned network. ``right`` holds a bit for
each sample of the search split, in hexadecimal digits: 1 where it was right. ``report`` prints the test accuracy of
what each rule keeps, and what the lower rates are above the configuration's.
"""

import argparse
import copy
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from defaults import Remembering, Silent, append, best_of, searched, stored
from torch import nn

from amcsearch.config.loading import load
from amcsearch.core.policy import PruningPolicy
from amcsearch.evaluation.paired import sample_values
from amcsearch.jobs.device import load_device
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.workload import judged_batches
from amcsearch.training.loop import evaluate

NETWORKS = ("digits", "digits-mobilenetv2", "digits-vgg", "digits-vit")
BUDGETS = ("latency_ms 0.5x", "macs 0.5x", "macs 0.3x")
TABLE = ("device.table=x86_epyc_avx512",)  # the same costs on every machine
CSV = Path(__file__).with_suffix(".csv")
RATES = (1.0, 0.2)  # shares of the configuration's learning rate
KEY = ("network", "seed", "budget", "evaluations", "learning_rate")
FIELDS = (*KEY, "dense_test", "epoch", "search", "search_loss", "test", "test_loss", "samples", "right")
Row = dict[str, Any]


class Judging:
    """A state of a training that is judged after every epoch and never taken up."""

    def __init__(self, job: Job, model: nn.Module) -> None:
        self.job, self.model, self.rows = job, copy.deepcopy(model), [judged(job, model)]

    def load(self) -> None:
        """Nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Judge the weights of the epoch."""
        self.model.load_state_dict(state["model"])
        self.rows.append(judged(self.job, self.model.eval()))


def judged(job: Job, model: nn.Module) -> dict[str, Any]:
    """Columns of a network: what it comes to on the splits."""
    task = job.workload.task
    splits = {name: judged_batches(job.config, job.workload, name) for name in ("search", "test")}
    search_loss, search = evaluate(model, splits["search"], task)
    test_loss, test = evaluate(model, splits["test"], task)
    values = sample_values(model, splits["search"], task)
    assert values is not None
    right = np.packbits(values > 0.5).tobytes().hex()
    return {
        "search": search, "search_loss": search_loss, "test": test, "test_loss": test_loss,
        "samples": len(values), "right": right,
    }  # fmt: skip


def rows_of(
    network: str, seed: int, options: argparse.Namespace, done: set[tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """Run what is not done of one network and seed."""
    where = Path(__file__).parents[1] / f"configs/searches/{network}.yaml"
    given = [*TABLE, f"seed={seed}", f"data.kwargs.seed={seed}"]
    config = load(where, given)
    assert config.recovery.finetune is not None
    rates = [f"{share * config.recovery.finetune.learning_rate:g}" for share in options.rates]
    keys = [
        (network, str(seed), budget, str(options.evaluations), rate) for budget in options.budgets for rate in rates
    ]
    if done.issuperset(keys):
        return
    begun = time.perf_counter()
    job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
    dense = evaluate(job.workload.model, judged_batches(config, job.workload, "test"), job.workload.task)[1]
    executor = Remembering(job.evaluator, {})
    print(network, seed, f"assembled in {time.perf_counter() - begun:.0f} s", flush=True)
    for budget in options.budgets:
        missing = [key for key in keys if key[2] == budget and key not in done]
        if not missing:
            continue
        begun = time.perf_counter()
        cost, limit = budget.split()
        limited = load(where, [*given, f"budget={{{cost}: {limit}}}"])
        job = replace(job, device=load_device(limited, job.workload, limited.limits))
        trials = searched(job, executor, config.search.agent, "obc", options.evaluations)
        policy = best_of(trials).policy
        print(network, seed, budget, f"searched in {time.perf_counter() - begun:.0f} s", flush=True)
        for key in missing:
            for epoch, row in enumerate(trained(job, policy, float(key[-1]))):
                yield {**dict(zip(KEY, key, strict=True)), "dense_test": dense, "epoch": epoch, **row}


def trained(job: Job, policy: PruningPolicy, learning_rate: float) -> list[dict[str, Any]]:
    """Fine-tune the network of a policy by the configuration's recipe at a learning rate: columns of every epoch."""
    finetune = job.config.recovery.finetune
    assert finetune is not None
    recipe = finetune.model_copy(update={"keep": "last", "learning_rate": learning_rate})
    model = job.evaluator.pruned(policy)
    state = Judging(job, model)
    fine_tune(job.config, recipe, job.workload, model, Silent(), store=state, given=job.given)
    return state.rows


def run(options: argparse.Namespace) -> None:
    """Append what the table lacks."""
    done = {tuple(row[name] for name in KEY) for row in stored(CSV)}
    pairs = [(network, seed) for seed in options.seeds for network in options.networks]
    append(CSV, FIELDS, (row for network, seed in pairs for row in rows_of(network, seed, options, done)))


def best(rows: Sequence[Row]) -> Row:
    """The first of the highest metric on the search split, and of these of the least loss."""
    return max(rows, key=lambda row: (row["search"], -row["search_loss"]))


def behind(row: Row, other: Row) -> float:
    """By how many standard errors of the paired difference a network is behind another on the search split."""
    lost = other["right"] - row["right"]
    error = float(lost.std(ddof=1)) / math.sqrt(len(lost))
    return float(lost.mean()) / error if error else 0.0


def near_best_of_least_loss(rows: Sequence[Row]) -> Row:
    """Of those within one standard error of the best, the one of the least loss."""
    first = best(rows)
    return min((row for row in rows if behind(row, first) <= 1.0), key=lambda row: row["search_loss"])


def before_if_surely(rows: Sequence[Row], choose: Callable[[Sequence[Row]], Row]) -> Row:
    """Choose among the epochs; the network before them where it is better at a confidence of 95 %."""
    chosen = choose(rows[1:])
    return rows[0] if behind(chosen, rows[0]) > 1.645 else chosen


RULES: dict[str, Callable[[Sequence[Row]], Row]] = {
    "before fine-tuning": lambda rows: rows[0],
    "best metric, before among them (`keep: best`)": best,
    "last epoch (`keep: last`)": lambda rows: rows[-1],
    "least loss": lambda rows: min(rows, key=lambda row: row["search_loss"]),
    "least loss within one standard error of the best metric": near_best_of_least_loss,
    "best metric after training, before if surely better": lambda rows: before_if_surely(rows, best),
    "last, before if surely better": lambda rows: before_if_surely(rows, lambda epochs: epochs[-1]),
    "best on the test split (not a rule)": lambda rows: max(rows, key=lambda row: row["test"]),
}


def stored_trainings() -> dict[tuple[str, ...], list[Row]]:
    """Rows of every training by its key, epoch by epoch."""
    trainings: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for line in stored(CSV):
        values = {name: float(line[name]) for name in FIELDS[len(KEY) : -1]}
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(line["right"]), np.uint8))[: int(line["samples"])]
        trainings[tuple(line[name] for name in KEY)].append({**values, "right": bits.astype(float)})
    return trainings


def report(options: argparse.Namespace) -> None:
    """Print the test accuracy of what each rule keeps, beside dense and beside the rule in use."""
    del options
    trainings = stored_trainings()
    print(
        "| network | seed | budget | rate | dense | before | each epoch | `keep: best` keeps | least loss near best |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (network, seed, budget, _, rate), rows in sorted(trainings.items()):
        first, *epochs = (f"{100 * row['test']:.2f}" for row in rows)
        kept = [f"{int(rule(rows)['epoch'])}" for rule in (best, near_best_of_least_loss)]
        dense = f"{100 * rows[0]['dense_test']:.2f}"
        print(f"| {' | '.join([network, seed, budget, rate, dense, first, ' '.join(epochs), *kept])} |")
    print("\n| rule | beside dense, mean | worst | beside `keep: best`, mean | worst | test loss |")
    print("|---|---|---|---|---|---|")
    for name, rule in RULES.items():
        kept_rows = [(rule(rows), best(rows)) for rows in trainings.values()]
        dense_points = [100 * (row["test"] - row["dense_test"]) for row, _ in kept_rows]
        today = [100 * (row["test"] - other["test"]) for row, other in kept_rows]
        loss = statistics.mean(row["test_loss"] for row, _ in kept_rows)
        numbers = (statistics.mean(dense_points), min(dense_points), statistics.mean(today), min(today))
        print(f"| {name} | {' | '.join(f'{number:+.2f}' for number in numbers)} | {loss:.4f} |")
    print_rates(trainings)


def print_rates(trainings: dict[tuple[str, ...], list[Row]]) -> None:
    """Print what the lower learning rate of each pair is above the higher, both from the same pruned network."""
    pairs: dict[str, list[tuple[list[Row], list[Row]]]] = defaultdict(list)
    for key, rows in trainings.items():
        for other, lower in trainings.items():
            same = key[:-1] == other[:-1] and rows[0]["right"].tolist() == lower[0]["right"].tolist()
            if same and float(other[-1]) < float(key[-1]):
                pairs[f"{key[0]} | {other[-1]} for {key[-1]}"].append((rows, lower))
    if not pairs:
        return
    print("\n| network | rate | pairs | higher beside dense | lower beside dense | lower above higher | at the end |")
    print("|---|---|---|---|---|---|---|")
    for name, both in {**pairs, "all | ": [pair for each in pairs.values() for pair in each]}.items():
        columns = [
            [best(high)["test"] - high[0]["dense_test"] for high, _ in both],
            [best(low)["test"] - low[0]["dense_test"] for _, low in both],
            [best(low)["test"] - best(high)["test"] for high, low in both],
            [low[-1]["test"] - high[-1]["test"] for high, low in both],
        ]
        print(f"| {name} | {len(both)} | {' | '.join(mean_and_error(column) for column in columns)} |")


def mean_and_error(shares: Sequence[float]) -> str:
    """Mean in points and its standard error."""
    points = [100 * share for share in shares]
    error = f" ± {statistics.stdev(points) / math.sqrt(len(points)):.2f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.2f}{error}"


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--evaluations", type=int, default=20, help="of the search")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="shares of the configuration's")
    options = parser.parse_args()
    {"run": run, "report": report}[options.part](options)


if __name__ == "__main__":
    main()
