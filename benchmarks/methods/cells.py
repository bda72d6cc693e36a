"""Cells of the table: what one method makes of one trained network, before and after training on.

    criterion, selector   prune in one go, read the test split, train for E epochs, read it again
    gate, schedule        train for E - 1 epochs while pruning, read the test split, train for 1 more, read it again

Channels: criteria and selectors take the same share of every group, gates and schedules of the network. Single weights:
criteria take the same share of every tensor (Wanda of every row), gates and schedules of the network.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import nn

from amcsearch.config import Config, FinetuneConfig
from amcsearch.core.policy import PolicySpace
from amcsearch.core.trial import Trial
from amcsearch.evaluation.evaluator import default_batch_size
from amcsearch.graph import HeldBatches
from amcsearch.jobs.device import load_device
from amcsearch.jobs.finetuning import fine_tune, recalibrate
from amcsearch.jobs.setup import make_evaluator
from amcsearch.jobs.sparsify.sparse_target import UnitTarget, WeightTarget
from amcsearch.jobs.sparsify.sparse_training import fixed, make_method, sparse_training
from amcsearch.jobs.workload import Workload
from amcsearch.methods.criteria import ALIASES, CRITERIA
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.gates import GATES
from amcsearch.methods.schedules import SCHEDULES
from amcsearch.methods.schedules.one_shot import Within, one_shot_masks
from amcsearch.methods.selectors import SELECTORS
from amcsearch.methods.weights import sparse_weights, weight_scores
from amcsearch.training.hook import TrainingHook
from amcsearch.training.loop import CLASS_IDS, evaluate
from amcsearch.training.reading import batches_of
from amcsearch.training.sparsification import bake
from amcsearch.training.splits import stacked

__all__ = ["CELLS", "Cell", "Measured", "measure"]

Granularity = Literal["channels", "weights"]


@dataclass(frozen=True)
class Cell:
    """A row of the table: a method by its family, and what it is made from."""

    family: Literal["criterion", "selector", "gate", "schedule"]
    granularity: Granularity
    name: str
    overrides: tuple[str, ...] = ()
    criterion: Callable[[], Criterion] | None = None
    within: Within = "layer"


@dataclass(frozen=True)
class Measured:
    """Test loss (nats) and accuracy (share) of the dense network, before and after training on.

    ``prune_s`` and ``recover_s`` are CPU seconds of one thread.
    """

    dense: tuple[float, float]
    before: tuple[float, float]
    after: tuple[float, float]
    prune_s: float
    recover_s: float


WEIGHT_CRITERIA: Final[dict[str, Callable[[], Criterion]]] = {
    **{name: CRITERIA[name] for name in ("random", "magnitude", "taylor")},
    "taylor_parameterwise": lambda: CRITERIA["taylor"](variant="parameterwise"),
    **{name: CRITERIA[name] for name in ("movement", "wanda")},
    "fisher, per weight": lambda: CRITERIA["fisher"](per_weight=True),
    "true_fisher, per weight": lambda: CRITERIA["fisher"](labels="model", per_weight=True),
    "obd, weights": lambda: CRITERIA["obd"](method="weights"),
}
SCHEDULE_PARAMS: Final[dict[str, tuple[str, str]]] = {  # trainings of some hundred steps need short intervals
    **{name: (name, "{}") for name in SCHEDULES if name not in ("rigl", "lottery")},
    "rigl, ERK": ("rigl", "{interval: 8}"),
    "rigl, uniform": ("rigl", "{interval: 8, distribution: uniform}"),
    "lottery, rewound to 5 %": ("lottery", "{rate: 0.5}"),
    "lottery, rewound to 0": ("lottery", "{rate: 0.5, rewind_to: 0.0}"),
}


def _cells() -> list[Cell]:
    names = [name for name in (*CRITERIA, *ALIASES) if name != "obd"]
    found = [Cell("criterion", "channels", name, (f"selection.criterion={name}",)) for name in names]
    for name, method in (("obd", "gauss_newton"), ("obd, 8 random signs", "gates")):  # as the rows were measured
        overrides = "selection.criterion=obd", f"selection.params={{method: {method}}}"
        found.append(Cell("criterion", "channels", name, overrides))
    found += [Cell("selector", "channels", name, (f"selection.selector={name}",)) for name in SELECTORS]
    for name, criterion in WEIGHT_CRITERIA.items():
        within: Within = "row" if name == "wanda" else "layer"
        found.append(Cell("criterion", "weights", name, criterion=criterion, within=within))
    for name, gate in GATES.items():
        own: Granularity = "channels" if gate.granularity == "units" else "weights"
        found.append(Cell("gate", own, name, (f"sparsify.method={name}",)))
    for name, (method, params) in SCHEDULE_PARAMS.items():
        overrides = f"sparsify.method={method}", f"sparsify.params={params}"
        found += [Cell("schedule", "channels", name, (*overrides, "sparsify.granularity=channels"))]
        found += [Cell("schedule", "weights", name, (*overrides, "sparsify.granularity=weights"))]
    return found


CELLS: Final = _cells()


def measure(cell: Cell, config: Config, workload: Workload, sparsity: float) -> Measured:
    """Prune, read the test split, train on, read it again.

    Raises:
        BadInputError: the method does not fit the network, or its training diverges.
    """
    test = batches_of(workload.splits.test, name="test")
    start = time.process_time()
    pruned, hook = _pruned(cell, config, workload, sparsity)
    middle = time.process_time()
    before = evaluate(pruned, test)
    begun = time.process_time()
    epochs = 1 if cell.family in ("gate", "schedule") else None
    fine_tune(config, _tuning(config, epochs), workload, pruned, _Silent(), hook)
    after = time.process_time()
    return Measured(evaluate(workload.model, test), before, evaluate(pruned, test), middle - start, after - begun)


def _pruned(cell: Cell, config: Config, workload: Workload, sparsity: float) -> tuple[nn.Module, TrainingHook | None]:
    """Return the pruned network with new statistics, and what keeps its zeros while it trains on."""
    if cell.family in ("gate", "schedule"):
        return _trained_sparse(cell, config, workload, sparsity)
    if cell.criterion is not None:
        return _weights_cut(cell, cell.criterion(), config, workload, sparsity)
    space = PolicySpace.on_grid(workload.trace.network.groups)
    policy = workload.trace.network.policy(space.nearest([sparsity] * len(space.groups)))
    return copy.deepcopy(make_evaluator(config, workload).pruned(policy)), None


def _weights_cut(
    cell: Cell, criterion: Criterion, config: Config, workload: Workload, sparsity: float
) -> tuple[nn.Module, TrainingHook]:
    model = copy.deepcopy(workload.model)
    inputs, targets = stacked(workload.splits.calibration)
    weights, batch_size = sparse_weights(model, workload.trace), default_batch_size(HeldBatches.of(inputs, targets, 1))
    scores = weight_scores(
        model, workload.trace, criterion, weights, HeldBatches.of(inputs, targets, batch_size), CLASS_IDS
    )
    kept = one_shot_masks(scores, sparsity, cell.within)
    bake(model, kept)
    recalibrate(config, workload, model)
    return model, fixed(model, kept)


def _trained_sparse(
    cell: Cell, config: Config, workload: Workload, sparsity: float
) -> tuple[nn.Module, TrainingHook | None]:
    device = load_device(config, workload, config.limits)
    target: UnitTarget | WeightTarget
    if cell.granularity == "channels":
        target = UnitTarget(workload.trace, device, None, 1.0 - sparsity)
    else:
        shapes = {name: tuple(w.shape) for name, w in sparse_weights(workload.model, workload.trace).items()}
        target = WeightTarget(workload.trace, device.space, shapes, None, 1.0 - sparsity)
    sparse = sparse_training(
        config, workload, make_method(config), target, _Nowhere(), lambda _epoch, _loss: None, print
    )
    recalibrate(config, workload, sparse.model)
    return sparse.model, fixed(sparse.model, sparse.masks) if sparse.granularity == "weights" else None


def _tuning(config: Config, epochs: int | None) -> FinetuneConfig | None:
    tuning = config.recovery.finetune
    if epochs is None or tuning is None:
        return tuning
    return tuning.model_copy(update={"epochs": epochs})


class _Nowhere:
    """A ``StateStore`` that keeps nothing: a cell that is cut off is begun again."""

    def load(self) -> dict[str, Any] | None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        del state


class _Silent:
    """An ``Observer`` that says nothing."""

    def phase(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def epoch(self, epoch: int, loss: float) -> None: ...

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int) -> None: ...

    def progress(self, share: float, text: str) -> None: ...
