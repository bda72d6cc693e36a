"""Check and time `torch_device: cuda` beside the CPU: statistics, evaluation, training, and the policy of a search.

    python benchmarks/cuda_check.py [--torch-device cuda] [--trials 40] [--epochs 4]

ResNet-20 on scikit-learn's digits is trained on the CPU. Then both devices do the same, and are to agree:

- statistics   every criterion's and selector's order of units: at half of every group, at most SET of the units kept
               differ (units of nearly equal scores change places by rounding)
- evaluation   the loss of random policies, recalibrated and refitted: relative difference at most LOSS
- training     the mean loss of every epoch of a fine-tuning with the dense network as teacher: relative at most EPOCH
- search       a search with the same seed: every trial's accuracy within POINTS, and the chosen policies equal, or the
               one found on the device within POINTS of the other's accuracy on the CPU

TF32 is left as torch has it (on in convolutions), because that is what users get. It prints one line a check with both
times, and ends with exit code 0 where all hold, 1 where one does not, and 2 where the device is not there. It takes
less than four minutes.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from torch import nn

import amcsearch
from amcsearch.config import Config, from_mapping
from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.evaluation import Evaluator, check_torch_device
from amcsearch.graph import duplicate
from amcsearch.jobs.workload import Workload, judged_batches, load_workload
from amcsearch.methods import CRITERIA, SELECTORS, Calibration, gather_inputs, problem_of, select
from amcsearch.methods.ranking import Ranking, rank_units
from amcsearch.recovery import Reconstruction
from amcsearch.training import Distillation, TrainingRecipe, fit

SET: Final = 0.05
LOSS: Final = 0.005
EPOCH: Final = 0.03
POINTS: Final = 1.5
POLICIES: Final = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """One check: how far the devices are apart, how far they may be, and the seconds of each."""

    what: str
    apart: float
    most: float
    cpu_s: float
    device_s: float

    @property
    def holds(self) -> bool:
        """Whether the devices agree."""
        return self.apart <= self.most

    def __str__(self) -> str:
        return f"{self.what}: {self.apart:.4g} (at most {self.most:g}); {self.cpu_s:.2f} s, {self.device_s:.2f} s"


def settings(torch_device: str, trials: int) -> Config:
    """The search, with torch on a device."""
    factories = {
        "model": {
            "factory": "amcsearch.training.models:resnet20",
            "kwargs": {"num_classes": 10, "in_channels": 1},
            "pretrain": {"epochs": 3, "learning_rate": 0.1, "batch_size": 32, "warmup_epochs": 1},
        },
        "data": {
            "factory": "amcsearch.training.data:digits",
            "kwargs": {"size": 16, "test_share": 0.25},
            "splits": {"calibration": 256, "search": 384},
        },
    }
    return from_mapping(
        {
            **factories,
            "device": {"channel_multiple": 4, "rounds": 10},
            "budget": {"macs": "0.5x"},
            "evaluation": {"torch_device": torch_device},
            "recovery": {"finetune": None},
            "search": {"agent": "random", "baseline": None, "trials": trials, "finalists": 1},
        }
    )


def timed(work: Callable[[], T], torch_device: str) -> tuple[T, float]:
    """A result with the seconds that it took, work on the device included."""
    begun = time.perf_counter()
    result = work()
    if torch.device(torch_device).type == "cuda":
        torch.cuda.synchronize(torch_device)
    return result, time.perf_counter() - begun


def both(work: Callable[[str], T], torch_device: str) -> tuple[T, T, float, float]:
    """Do the same on the CPU and on the device; the device does it once before, to be warm."""
    work(torch_device)
    on_cpu, cpu_s = timed(lambda: work("cpu"), "cpu")
    there, device_s = timed(lambda: work(torch_device), torch_device)
    return on_cpu, there, cpu_s, device_s


def sets_apart(a: Ranking, b: Ranking) -> float:
    """Share of the units kept, at half of every group, that differ."""
    halves = {group: (set(a[group][: len(a[group]) // 2]), set(b[group][: len(b[group]) // 2])) for group in a}
    kept = sum(len(ours) for ours, _ in halves.values())
    return sum(len(ours - theirs) for ours, theirs in halves.values()) / max(1, kept)


def statistics_lines(config: Config, workload: Workload, torch_device: str) -> list[Line]:
    """Orders of units by every criterion and selector."""
    batches, traced, task = judged_batches(config, workload, "calibration"), workload.trace, workload.task
    models = {name: duplicate(workload.model).to(name) for name in ("cpu", torch_device)}

    def ranked(name: str) -> Callable[[str], Ranking]:
        return lambda device: rank_units(models[device], traced, CRITERIA[name](), batches, task)

    def ordered(name: str) -> Callable[[str], Ranking]:
        def orders(device: str) -> Ranking:
            selector = SELECTORS[name]()
            calibration = Calibration(models[device], traced, batches, task)
            return select(problem_of(calibration, labels=selector.labels), selector).orders

        return orders

    ways = {f"criterion {name}": ranked(name) for name in CRITERIA}
    ways |= {f"selector {name}": ordered(name) for name in SELECTORS if name != "discrimination_aware"}  # a minute
    lines = []
    for what, work in ways.items():
        ours, theirs, cpu_s, device_s = both(work, torch_device)
        lines.append(Line(f"statistics: {what}", sets_apart(ours, theirs), SET, cpu_s, device_s))
    return lines


def random_policies(workload: Workload) -> list[PruningPolicy]:
    """Policies that keep between a third and all of every group."""
    rng, groups = np.random.default_rng(0), workload.trace.network.groups
    return [
        PruningPolicy({g.name: g.unit * max(1, round(g.channels // g.unit * rng.uniform(0.33, 1.0))) for g in groups})
        for _ in range(POLICIES)
    ]


def evaluation_line(config: Config, workload: Workload, torch_device: str) -> Line:
    """Losses of random policies, their readers refitted by least squares."""
    batches, search = (judged_batches(config, workload, split) for split in ("calibration", "search"))
    traced, policies = workload.trace, random_policies(workload)
    ranking = rank_units(workload.model, traced, CRITERIA["magnitude"](), batches, workload.task)

    def losses(device: str) -> list[float]:
        model = duplicate(workload.model).to(device)
        refit = Reconstruction(model, traced, gather_inputs(model, traced, batches).values(), "least_squares")
        evaluator = Evaluator(
            model, traced, ranking, batches, search, reconstruction=refit, torch_device=device, task=workload.task
        )
        return [evaluator.evaluate(policy).loss for policy in policies]

    ours, theirs, cpu_s, device_s = both(losses, torch_device)
    apart = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(ours, theirs, strict=True))
    return Line(f"evaluation: loss of {POLICIES} policies", apart, LOSS, cpu_s, device_s)


def training_line(workload: Workload, torch_device: str, epochs: int) -> Line:
    """Mean losses of a fine-tuning, epoch by epoch."""
    recipe = TrainingRecipe(epochs, learning_rate=0.01, batch_size=32)

    def losses(device: str) -> list[float]:
        model: nn.Module = duplicate(workload.model)
        options = {"teacher": workload.model, "distillation": Distillation(), "torch_device": device}
        return fit(model, workload.splits.train, recipe, seed=0, task=workload.task, **options)  # type: ignore[arg-type]

    ours, theirs, cpu_s, device_s = both(losses, torch_device)
    apart = max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(ours, theirs, strict=True))
    return Line(f"training: loss of {epochs} epochs", apart, EPOCH, cpu_s, device_s)


def search_lines(workload: Workload, torch_device: str, trials: int) -> list[Line]:
    """Accuracy of every trial, and of the policies chosen, in points."""

    def found(device: str) -> amcsearch.SearchResult:
        config = settings(device, trials).model_dump(mode="json")
        config["model"] |= {"factory": None, "kwargs": {}, "pretrain": None}
        return amcsearch.search(workload.model, config=from_mapping(config))

    ours, cpu_s = timed(lambda: found("cpu"), "cpu")
    theirs, device_s = timed(lambda: found(torch_device), torch_device)
    columns = [result.trials.sort_values("number")["accuracy"].to_numpy() for result in (ours, theirs)]
    apart = 100 * float(np.abs(columns[0] - columns[1]).max())
    chosen = 0.0
    if ours.policy != theirs.policy:
        best = {str(p): a for p, a in zip(ours.trials["policy"], ours.trials["accuracy"], strict=True)}
        values = [best.get(result.policy.to_json()) for result in (ours, theirs)]
        chosen = 100.0 if None in values else 100 * abs(values[0] - values[1])  # type: ignore[operator]
    return [
        Line(f"search: accuracy of {trials} trials, points", apart, POINTS, cpu_s, device_s),
        Line("search: the chosen policy, points on the CPU", chosen, POINTS, cpu_s, device_s),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the checks; the exit code is described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-device", default="cuda", help="the device beside the CPU (cuda)")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=4)
    asked = parser.parse_args(arguments)
    try:
        check_torch_device(asked.torch_device)
    except BadInputError as error:
        print(f"not checked: {error}", file=sys.stderr)
        return 2
    begun, config = time.perf_counter(), settings("cpu", asked.trials)
    workload = load_workload(config)
    lines = [
        *statistics_lines(config, workload, asked.torch_device),
        evaluation_line(config, workload, asked.torch_device),
        training_line(workload, asked.torch_device, asked.epochs),
        *search_lines(workload, asked.torch_device, asked.trials),
    ]
    for line in lines:
        print("ok   " if line.holds else "APART", line)
    print(f"CPU and {asked.torch_device}, torch {torch.__version__}: {time.perf_counter() - begun:.0f} s in all")
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
