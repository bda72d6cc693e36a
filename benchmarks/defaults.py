"""Which selection and which agent are the default: every pair at equal evaluations, over networks, budgets and seeds.

    OMP_NUM_THREADS=1 python benchmarks/defaults.py run [--networks digits …] [--seeds 0 1 2] [--evaluations 40]
    python benchmarks/defaults.py report
    OMP_NUM_THREADS=1 python benchmarks/defaults.py samples [--networks digits …]

``run`` appends a line a search to ``benchmarks/defaults.csv``; what stands there already is not run again. A seed
changes the data split, the training, the search and the fine-tuning. ``obc`` refits by least squares, ``taylor`` does
not; batch norms are recalibrated under both. Agents with ``obc`` begin with the exact allocation of its errors and the
uniform policy (``search.start: exact``), ``uniform`` and ``random`` without: they are what a search is held to. The
best policy on the search split is judged on the test split, at once and after a short fine-tuning with the dense
network as teacher (the configuration's, of ``--epochs`` epochs) for the rows of TUNED. Where the fine-tuning keeps its
best epoch (``keep: best``), that may be the network it began with. ``report`` prints means over seeds with their
standard deviation.

``samples`` prints the metric on the test split of the largest uniform policy within a budget, recalibrated, by the
selection and by how many calibration samples it and the batch norms see (seed 0).
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from amcsearch.config.loading import load
from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation, Trial, TrialState
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.jobs.device import load_device
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.setup import Job, assemble, reranked
from amcsearch.jobs.workload import judged_batches
from amcsearch.search import AGENTS, RewardContext, Study, bind, removal_errors, starting_policies
from amcsearch.training.loop import evaluate

NETWORKS = ("digits", "digits-mobilenetv2", "digits-vit")
BUDGETS = ("macs 0.15x", "macs 0.1x")
ROWS = (
    *(("obc", agent) for agent in ("dynamic_programming", "ladder", "ddpg", "nsga2", "uniform", "random")),
    *(("taylor", agent) for agent in ("ddpg", "uniform")),
)
TUNED = (("obc", "dynamic_programming"), ("obc", "ladder"), ("obc", "ddpg"), ("obc", "uniform"), ("taylor", "ddpg"))
TUNED_BUDGET = "macs 0.15x"
PLAIN = ("uniform", "random")
SELECTIONS = {"obc": "{selector: obc}", "taylor": "{criterion: taylor}"}
TABLE = ("device.table=x86_epyc_avx512",)  # the same costs on every machine
FEW = (1, 2, 4, 16, 64, 256)
FEW_BUDGETS = ("macs 0.5x", "macs 0.3x")
FEW_SELECTIONS = {**SELECTIONS, "wanda_channels": "{criterion: wanda_channels}"}
MARKS = (1, 8)
CSV = Path(__file__).with_suffix(".csv")
FIELDS = (
    *("network", "seed", "budget", "selection", "agent", "evaluations", "dense_test", "seconds"),
    *("search_1", "search_8", "search_all", "test", "tuned"),
)


class Silent(Observer):
    """Watches nothing."""


@dataclass
class Remembering:
    """Evaluates every policy once for all agents; two that propose the same are served the same."""

    evaluator: Evaluator
    known: dict[PruningPolicy, Evaluation]
    capacity = 1

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        """As ``Executor.map``."""
        for policy in policies:
            if policy not in self.known:
                self.known[policy] = self.evaluator.evaluate(policy)
            yield self.known[policy]

    def close(self) -> None:
        """Nothing is held."""


def searched(job: Job, executor: Remembering, agent: str, selection: str, evaluations: int) -> list[Trial]:
    """Run one agent within the job's budget and return its trials."""
    device, metric = job.device, job.workload.task.metric
    context = RewardContext(device.dense, job.dense.metric, device.feasible.budget, metric)
    study = Study(
        job.workload.trace.network,
        device.space,
        device.grid,
        device.feasible,
        executor,
        bind("accuracy", {}, context),
        agent=agent,
        seed=job.config.seed,
        trials=evaluations,
        storage="sqlite:///:memory:",
        name="defaults",
        errors=None if job.errors is None else removal_errors(device.space, job.errors),
    )
    if selection == "obc" and agent not in PLAIN:
        study.evaluate(starting_policies(study))
    AGENTS[agent]().run(study, job.config.seed)
    return study.trials


def best_of(trials: Sequence[Trial]) -> Trial:
    """The complete trial of the largest reward."""
    return max((t for t in trials if t.state is TrialState.COMPLETE), key=lambda trial: trial.reward)


def tested(job: Job, policy: PruningPolicy, *, tune: bool, epochs: int) -> tuple[float, float | None]:
    """Metric on the test split of the pruned network, and of the fine-tuned one where that is asked for."""
    test, model = judged_batches(job.config, job.workload, "test"), job.evaluator.pruned(policy)
    pruned = evaluate(model, test, job.workload.task)[1]
    if not tune:
        return pruned, None
    finetune = job.config.recovery.finetune
    assert finetune is not None
    short = finetune.model_copy(update={"epochs": epochs})
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(job.config, short, job.workload, model, Silent(), given=job.given, folder=Path(folder))
    return pruned, evaluate(model.eval(), test, job.workload.task)[1]


def rows_of(
    network: str, seed: int, options: argparse.Namespace, done: set[tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """Run what is not done of one network and seed: every budget, selection and agent."""
    where = Path(__file__).parents[1] / f"configs/searches/{network}.yaml"
    config = load(where, [*TABLE, f"seed={seed}", f"data.kwargs.seed={seed}", f"selection={SELECTIONS['obc']}"])
    job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
    dense = evaluate(job.workload.model, judged_batches(config, job.workload, "test"), job.workload.task)[1]
    for selection in options.selections:
        if selection == "taylor":
            keys = [f"seed={seed}", f"data.kwargs.seed={seed}", f"selection={SELECTIONS['taylor']}"]
            job = reranked(replace(job, config=load(where, [*TABLE, *keys])), job.workload)
        executor = Remembering(job.evaluator, {})
        for budget in options.budgets:
            cost, limit = budget.split()
            limited = load(where, [*TABLE, f"budget={{{cost}: {limit}}}"])
            job = replace(job, device=load_device(limited, job.workload, limited.limits))
            for _, agent in (row for row in ROWS if row[0] == selection and row[1] in options.agents):
                key = (network, str(seed), budget, selection, agent)
                if key in done:
                    continue
                begun = time.perf_counter()
                trials = searched(job, executor, agent, selection, options.evaluations)
                seconds, best = time.perf_counter() - begun, best_of(trials)
                tune = (selection, agent) in TUNED and budget == TUNED_BUDGET
                test, tuned = tested(job, best.policy, tune=tune, epochs=options.epochs)
                marks = {f"search_{n}": best_of(trials[:n]).evaluation.metric for n in MARKS}
                yield {
                    **dict(zip(FIELDS, key, strict=False)),
                    "evaluations": len(trials),
                    "dense_test": dense,
                    "seconds": round(seconds, 1),
                    **marks,
                    "search_all": best.evaluation.metric,
                    "test": test,
                    "tuned": tuned,
                }


def samples(options: argparse.Namespace) -> None:
    """Print a line a network, a number of samples and a selection."""
    print(f"| network | calibration samples | selection | {' | '.join(FEW_BUDGETS)} |")
    print(f"|---|---|---|{'---|' * len(FEW_BUDGETS)}")
    for network in options.networks:
        where = Path(__file__).parents[1] / f"configs/searches/{network}.yaml"
        config = load(where, [*TABLE, "selection={selector: obc}", "budget={macs: 0.5x}"])
        job = assemble(config, config.limits, Phases(Silent(), lambda _: None))
        workload, test = job.workload, judged_batches(config, job.workload, "test")
        for count in FEW:
            calibration = Subset(workload.splits.calibration, range(count))
            fewer = replace(workload, splits=replace(workload.splits, calibration=calibration))
            for name, selection in FEW_SELECTIONS.items():
                ranked = reranked(replace(job, config=load(where, [*TABLE, f"selection={selection}"])), fewer)
                cells = []
                for budget in FEW_BUDGETS:
                    cost, limit = budget.split()
                    limited = load(where, [*TABLE, f"budget={{{cost}: {limit}}}"])
                    feasible = load_device(limited, workload, limited.limits).feasible
                    policy = workload.trace.network.policy(feasible.largest_uniform())
                    metric = evaluate(ranked.evaluator.pruned(policy), test, workload.task)[1]
                    cells.append(f"{workload.task.metric.scale * metric:.1f}")
                print(f"| {network} | {count} | {name} | {' | '.join(cells)} |", flush=True)


def run(options: argparse.Namespace) -> None:
    """Append to the table what it lacks, one seed of every network after another."""
    done = {(r["network"], r["seed"], r["budget"], r["selection"], r["agent"]) for r in stored(CSV)}
    pairs = [(network, seed) for seed in options.seeds for network in options.networks]
    append(CSV, FIELDS, (row for network, seed in pairs for row in rows_of(network, seed, options, done)))


def append(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write every row to the end of a CSV file as soon as it is made."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.flush()


def stored(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report(options: argparse.Namespace) -> None:
    """Print the table of means, percent, over the seeds that are there."""
    del options
    cells = defaultdict(list)
    for row in stored(CSV):
        cells[row["network"], row["budget"], row["selection"], row["agent"]].append(row)
    print(
        "| network | budget | selection | agent | seeds | after 1 | after 8 | after all | test | fine-tuned | dense |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for key, rows in cells.items():
        columns = ("search_1", "search_8", "search_all", "test", "tuned", "dense_test")
        told = " | ".join(mean_text([row[column] for row in rows]) for column in columns)
        print(f"| {' | '.join(key)} | {len(rows)} | {told} |")


def mean_text(values: list[str]) -> str:
    """Mean and standard deviation in percent; a dash where there is nothing."""
    shares = [100.0 * float(value) for value in values if value]
    if not shares:
        return "–"
    spread = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.1f}{spread}"


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report", "samples"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--agents", nargs="+", default=list(dict.fromkeys(agent for _, agent in ROWS)))
    parser.add_argument("--selections", nargs="+", default=list(SELECTIONS), choices=SELECTIONS)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=2, help="of the fine-tuning")
    options = parser.parse_args()
    {"run": run, "report": report, "samples": samples}[options.part](options)


if __name__ == "__main__":
    main()
