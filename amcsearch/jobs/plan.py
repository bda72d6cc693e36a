"""The plan of a search: its sizes, its costs, and how long each phase will take, without doing it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from amcsearch.config import Config, FinetuneConfig, RecipeConfig, RewardConfig, label
from amcsearch.core import MIB, Cost, PruningPolicy
from amcsearch.evaluation import SerialExecutor, looked_at
from amcsearch.graph import Batch, Trace, evaluating
from amcsearch.jobs.device import Device, load_device
from amcsearch.jobs.finalist_training import training_rounds
from amcsearch.jobs.left_alone import LeftAlone, largest_left_alone
from amcsearch.jobs.machine_table import ExpectedTable, expected_table
from amcsearch.jobs.network_check import check_export
from amcsearch.jobs.observer import Observer, wall_s, watcher
from amcsearch.jobs.rehearsal import rehearse
from amcsearch.jobs.search import check_fits, fills_workers, make_agents, make_reward, met_by_dense
from amcsearch.jobs.selection import check_named, with_selection
from amcsearch.jobs.setup import choice_of, error_space, evaluator_of
from amcsearch.jobs.user_training import user_training
from amcsearch.jobs.workload import CONFIGURED, PLAN_SAMPLES, InMemory, Workload, make_workload, trained
from amcsearch.runs import Document, SkippedLayer, with_total
from amcsearch.runtime import measuring_seconds
from amcsearch.training import SPLITS, TRAIN_SAMPLES, are_outputs_kept, is_in_memory, length, read

__all__ = ["PlannedNetwork", "SearchPlan", "growth", "plan"]

PROGRAM_EXPORTS: Final = 8  # a program of torch.export takes about as long as so many exports to ONNX
TEST_PASSES: Final = 6  # dense, pruned and fine-tuned in torch, and each of three delivered files


@dataclass(frozen=True)
class PlannedNetwork:
    """The network of a plan: its factory, how many layers and channel groups it has, and what is never pruned.

    ``left_alone`` are the largest layers that pruning cannot reach.
    """

    factory: str | None
    layers: int
    groups: int
    skipped: tuple[SkippedLayer, ...]
    left_alone: tuple[LeftAlone, ...] = ()


@dataclass(frozen=True)
class SearchPlan(Document):
    """What a search would do.

    ``samples`` are those of each split; ``dense`` and ``largest_uniform`` are costs of the dense network and of the
    largest policy of one ratio within the ``budget`` (limits in the unit of each cost); ``policies`` counts those of
    the space; ``selection`` says what chooses channels, and why where nobody chose it; ``expected_seconds`` are the
    wall time of each phase, with one worker; ``fills_workers`` says whether the agent and its baseline keep any number
    of workers busy whatever ``search.batch`` is.
    """

    name: str
    network: PlannedNetwork
    samples: Mapping[str, int]
    dense: Cost
    budget: Mapping[str, float]
    largest_uniform: Cost
    channel_multiple: int
    widths_left_out: int
    policies: int
    selection: str
    agent: str
    baseline: str | None
    trials: int
    warnings: tuple[str, ...]
    expected_seconds: Mapping[str, float]
    fills_workers: bool = False

    @property
    def total_seconds(self) -> float:
        """Expected wall time of all phases."""
        return sum(self.expected_seconds.values())

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON; what is never pruned is in sentences."""
        network = {
            "factory": self.network.factory,
            "layers": self.network.layers,
            "groups": self.network.groups,
            "skipped": [f"{skipped.name}: {skipped.reason}" for skipped in self.network.skipped],
            "left_alone": [asdict(layer) for layer in self.network.left_alone],
        }
        return {**super().to_json(), "network": network, "expected_seconds": with_total(self.expected_seconds)}


def plan(
    config: Config, given: InMemory = CONFIGURED, observer: Observer | None = None, *, strict: bool = False
) -> SearchPlan:
    """Return sizes, costs, the space and the expected seconds of a search; nothing is trained or written.

    Times are extrapolated from what is done here: loading, tracing and exporting the network, ranking its channels, one
    evaluation of the largest uniform policy within the budget, one training step and one pass. Left out are the agent's
    own computing between evaluations, further finalists where none of the first is within a latency limit, and a
    training of the user's own. ``observer`` is told of each step; None draws them on stderr.

    Raises:
        BadInputError, InfeasibleBudgetError: as the search itself would.
    """
    begun = time.perf_counter()
    agents, _ = make_agents(config, given), make_reward(config, given)
    check_named(config, given)
    tell = watcher(observer).phase
    tell("Loading and tracing the network, with a few samples")
    workload = make_workload(config, given, limit=PLAN_SAMPLES)
    tell("Pricing the network on the device")
    device, expected = _priced(config, workload, given, strict=strict)
    config, selection = with_selection(config, workload, given)
    tell("Rehearsing what follows a search, on a pruned copy")
    export_s, told = _rehearsed(config, workload, device, given)
    workload = trained(config, workload, is_trained=True)
    planned_s = time.perf_counter() - begun
    tell("Timing a pass, an evaluation and a step of training")
    spec = workload.trace.network
    uniform = spec.policy(device.feasible.largest_uniform())
    return SearchPlan(
        name=config.name,
        network=_network(config, workload.trace),
        samples=workload.samples,
        dense=device.dense,
        budget=dict(device.feasible.budget.limits),
        largest_uniform=device.grid.cost(uniform),
        channel_multiple=device.channel_multiple,
        widths_left_out=device.widths_left_out,
        policies=device.space.size,
        selection=selection,
        agent=label(config.search.agent),
        baseline=config.search.baseline and label(config.search.baseline),
        trials=config.search.evaluations,
        warnings=(*workload.warnings, *_said_of(expected), *device.warnings, *told),
        expected_seconds=_expected_seconds(
            config, workload, given, uniform, planned_s, export_s, 0.0 if expected is None else expected.seconds or 0.0
        ),
        fills_workers=all(fills_workers(agent, stops=config.search.stop_confidence is not None) for _, agent in agents),
    )


def _priced(
    config: Config, workload: Workload, given: InMemory, *, strict: bool
) -> tuple[Device, ExpectedTable | None]:
    """Return the device, without a price of latency where this machine has no table yet; and that table, if any."""
    expected = expected_table(config, workload, config.limits, given)
    machine = None if expected is None else expected.table
    priced = config if expected is None or machine is not None else _without_latency(config)
    device = load_device(priced, workload, priced.limits, given, strict=strict, machine=machine)
    check_fits(priced, workload, device)
    return device, expected


def _rehearsed(config: Config, workload: Workload, device: Device, given: InMemory) -> tuple[float, tuple[str, ...]]:
    """Return the seconds of one export, and what a search would warn of before it begins."""
    export_s = wall_s(lambda: check_export(config, workload.model, workload.probes, workload.example, workload.task))
    return export_s, (*met_by_dense(config, device), *rehearse(config, workload, device, given))


def _network(config: Config, trace: Trace) -> PlannedNetwork:
    spec, skipped = trace.network, tuple(SkippedLayer(skipped.name, skipped.reason) for skipped in trace.skipped)
    return PlannedNetwork(config.model.factory, len(spec.layers), len(spec.groups), skipped, largest_left_alone(trace))


def _said_of(expected: ExpectedTable | None) -> tuple[str, ...]:
    return () if expected is None or expected.text is None else (expected.text,)


def _without_latency(config: Config) -> Config:
    """The configuration without limits, objectives and a reward in latency, which nothing prices yet."""
    search, name = config.search, "latency_ms"
    objectives = tuple(objective for objective in search.objectives or () if objective != name)
    update = {"objectives": objectives if len(objectives) > 1 else None, "reward": RewardConfig()}
    budget = {key: limit for key, limit in config.budget.items() if key != name}
    return config.model_copy(update={"budget": budget, "search": search.model_copy(update=update)})


@dataclass(frozen=True)
class _SampleSeconds:
    """Wall time of one sample: read, through the network, and in a step of a training.

    ``target_s`` is what the dense network takes for its target in a training, ``kept_target_s`` the same where it is
    kept after the first time; 0 where targets are given or in memory.
    """

    reading_s: float
    pass_s: float
    step_s: float
    target_s: float = 0.0
    kept_target_s: float = 0.0


def _expected_seconds(
    config: Config,
    workload: Workload,
    given: InMemory,
    uniform: PruningPolicy,
    planned_s: float,
    export_s: float,
    table_s: float,
) -> dict[str, float]:
    """Wall time of each phase; ``export_s`` is that of one export, compared with torch, ``planned_s`` of the plan."""
    sample = _sample_seconds(config, workload)
    ranking_s, evaluation_s = _choosing_seconds(config, workload, given, uniform, sample.pass_s)
    device, count = config.device, config.search.finalists
    pretrain_s, finalists_s, finetune_s = _training_seconds(config, workload, given, sample)
    searches = 1 + (config.search.baseline not in (None, config.search.agent))

    def measuring_s(pruned: int) -> float:
        return measuring_seconds(1e3 * sample.pass_s * device.batch, 1 + pruned, device.rounds)

    return {
        "costs": planned_s + _checking_seconds(workload, sample),
        **({"table": table_s} if table_s else {}),
        "network": _targets_seconds(config, workload, sample)
        + (0.0 if config.model.pretrain is None else pretrain_s + export_s),
        "ranking": ranking_s,
        "search": evaluation_s * config.search.evaluations * searches,
        "finalists": (1 + count) * export_s + measuring_s(count) + finalists_s,
        "finetune": finetune_s,
        "verify": (1 + PROGRAM_EXPORTS) * export_s
        + measuring_s(1)
        + TEST_PASSES * sample.pass_s * workload.samples["test"],
    }


def _training_seconds(
    config: Config, workload: Workload, given: InMemory, sample: _SampleSeconds
) -> tuple[float, float, float]:
    """Wall time of training the dense network, the finalists and the chosen policy.

    The first training after the removal computes the targets that are kept.
    """

    def trained_s(recipe: RecipeConfig | None) -> float:
        return 0.0 if recipe is None else recipe.epochs * _epoch_seconds(workload, recipe, sample)

    rounds = training_rounds(config, given, config.search.finalists)
    finalists_s = sum(each.finalists * trained_s(each.training) for each in rounds)
    finetune_s = trained_s(config.recovery.finetune if user_training(config, given) is None else None)
    targets_s = workload.samples["train"] * sample.kept_target_s
    if finalists_s:
        return trained_s(config.model.pretrain), finalists_s + targets_s, finetune_s
    return trained_s(config.model.pretrain), 0.0, finetune_s + targets_s if finetune_s else 0.0


def _choosing_seconds(
    config: Config, workload: Workload, given: InMemory, uniform: PruningPolicy, pass_s: float
) -> tuple[float, float]:
    """Wall time of ranking the channels, and of one evaluation in this process, on one thread as a search does it."""
    begun = time.perf_counter()
    choice = choice_of(config, workload, given, planned=True)
    evaluator = evaluator_of(config, workload, choice)
    evaluator.evaluate(uniform)
    reading_s = time.perf_counter() - begun - choice.ordering_s
    ranking_s = reading_s * growth(workload, "calibration") + choice.ordering_s / choice.ordered
    if choice.errors is not None:
        networks, samples = looked_at(
            error_space(config, workload), workload.trace.network, workload.samples["calibration"]
        )
        ranking_s += networks * (wall_s(lambda: evaluator.without_recalibration().pruned(uniform)) + samples * pass_s)
    judged = ("calibration", "search") if config.recovery.bn_recalibration else ("search",)
    (evaluation,) = SerialExecutor(evaluator).map([uniform])
    return ranking_s, evaluation.seconds * growth(workload, *judged)


def _checking_seconds(workload: Workload, sample: _SampleSeconds) -> float:
    """Wall time of reading and checking those samples that the plan did not."""
    judged = sum(_unread(workload, name) for name in SPLITS[1:])
    in_memory = is_in_memory(workload.splits.train)
    surveyed = 0 if in_memory else min(TRAIN_SAMPLES, workload.samples["train"]) - PLAN_SAMPLES
    return judged * (sample.reading_s + sample.pass_s) + max(0, surveyed) * sample.reading_s


def _targets_seconds(config: Config, workload: Workload, sample: _SampleSeconds) -> float:
    """Wall time of the dense network's outputs for all samples that are judged."""
    count = sum(workload.samples[name] for name in SPLITS[1:])
    return count * sample.pass_s if config.data.targets == "dense" else 0.0


def _unread(workload: Workload, split: str) -> int:
    """How many samples of a split the plan left out."""
    return workload.samples[split] - length(getattr(workload.splits, split), split)


def growth(workload: Workload, *splits: str) -> float:
    """How many times as many samples splits have as were read of them for the plan."""
    read_here = sum(length(getattr(workload.splits, name), name) for name in splits)
    return sum(workload.samples[name] for name in splits) / read_here


def _sample_seconds(config: Config, workload: Workload) -> _SampleSeconds:
    """Time what every sample goes through, for a few of them."""
    recipes = [recipe for recipe in (config.model.pretrain, config.recovery.finetune) if recipe]
    size = min(PLAN_SAMPLES, workload.samples["train"], *(recipe.batch_size for recipe in recipes))
    begun = time.perf_counter()
    batch = read(workload.splits.train, range(size), "train")
    reading_s = (time.perf_counter() - begun) / batch.size
    pass_s = _pass_seconds(workload)
    is_computed = config.data.targets == "dense" and not is_in_memory(workload.splits.train)
    target_s = min(pass_s, reading_s) if is_computed else 0.0
    kept = (
        are_outputs_kept(batch.targets, workload.samples["train"], config.data.memory_mib * MIB) if target_s else False
    )
    targets_s = (0.0, target_s) if kept else (target_s, 0.0)
    return _SampleSeconds(reading_s - target_s, pass_s, _step_seconds(workload, batch) if recipes else 0.0, *targets_s)


def _pass_seconds(workload: Workload) -> float:
    """Time the second of two passes of a batch of the device's size in eval mode, for one sample."""
    example = workload.example
    with evaluating(workload.model), torch.inference_mode():
        example.through(workload.model)
        return wall_s(lambda: example.through(workload.model)) / example.size


def _epoch_seconds(workload: Workload, recipe: RecipeConfig, sample: _SampleSeconds) -> float:
    """Read every sample of the training split and take a step with it, with the passes of a teacher."""
    taught = isinstance(recipe, FinetuneConfig) and recipe.distillation is not None
    each_s = sample.reading_s + sample.target_s + sample.step_s + (sample.pass_s if taught else 0.0)
    return workload.samples["train"] * each_s


def _step_seconds(workload: Workload, batch: Batch) -> float:
    """Time one forward and backward pass of a few samples, for each of them; the rehearsal has trained before."""
    parameters = [p for p in workload.model.parameters() if p.requires_grad]

    def step() -> None:
        torch.autograd.grad(
            workload.task.loss(batch.through(workload.model), batch.targets), parameters, allow_unused=True
        )

    return wall_s(step) / batch.size
