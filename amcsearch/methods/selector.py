"""The contract of selectors, what a selector is given, and the kept units and refitted weights it leads to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, Side
from amcsearch.graph import Batches, Trace
from amcsearch.methods.first_order import LossFunction
from amcsearch.methods.layer_inputs import POSITIONS, LayerInputs, gather_inputs
from amcsearch.methods.least_squares import DAMPING, REFITS, channel_gram
from amcsearch.methods.patches import weight_matrix
from amcsearch.methods.ranking import Ranking

__all__ = [
    "Calibration",
    "ErrorSelector",
    "Problem",
    "Reader",
    "Refitted",
    "RemovalErrors",
    "Selection",
    "Selector",
    "contributions",
    "problem_of",
    "refitted",
    "select",
]


@dataclass(frozen=True)
class Calibration:
    """The dense network, the data it may be asked about, and its loss."""

    model: nn.Module
    trace: Trace
    batches: Batches
    loss_fn: LossFunction


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group: ``weight`` (conv_groups, C_out / conv_groups, columns) float64.

    ``columns`` (n_units, width) are the columns of each unit; others belong to groups that stay whole here.
    """

    inputs: LayerInputs
    weight: Tensor
    columns: Tensor

    @property
    def energy(self) -> float:
        """E||y||^2 of its output about the constant; an error divided by it is 1 where all inputs are dropped."""
        return float(((self.weight @ self.inputs.gram) * self.weight).sum())


@dataclass(frozen=True)
class Problem:
    """All groups with their readers, and the network they were seen in."""

    readers: Mapping[str, Sequence[Reader]]
    calibration: Calibration

    @property
    def inputs(self) -> dict[str, LayerInputs]:
        """What every reader reads, by layer."""
        return {reader.inputs.layer: reader.inputs for readers in self.readers.values() for reader in readers}

    def largest(self) -> tuple["Problem", float]:
        """Return the problem of the one group that takes most work to order, and its share of the work of all.

        The work of a group is counted as its units times the entries of its readers' Gram matrices.
        """
        work = {
            group: len(readers[0].columns) * sum(reader.inputs.gram.numel() for reader in readers)
            for group, readers in self.readers.items()
        }
        group = max(work, key=lambda name: work[name])
        return Problem({group: self.readers[group]}, self.calibration), work[group] / sum(work.values())


class Selector(Protocol):
    """Which units of a group to keep, judged by the layers that read them, and how those are refitted.

    Promise: ``orders`` is a pure function of the problem and gives every group's units, most important first, for every
    count at once: n_keep units are the first n_keep, so fewer are a subset of more. ``refit`` is a row of ``REFITS``,
    the rule that gives the readers' weights for the kept units. ``labels`` says whether moments by class are needed.
    The network is left as found.
    """

    @property
    def refit(self) -> str:
        """Row of ``REFITS``."""
        ...

    @property
    def labels(self) -> bool:
        """Whether ``LayerInputs.classes`` is needed."""
        ...

    def orders(self, problem: Problem) -> Ranking:
        """Return the order of every group's units."""
        ...


RemovalErrors = Mapping[str, NDArray[np.float64]]
"""Group name → error of keeping 0, 1, … of its units, best first: (n_units + 1,), never rising, 0 for all of them.

Each reader's error after its refit counts as a share of its output's energy, summed over the readers. So a reader that
loses every input counts 1, and groups compare.
"""


@runtime_checkable
class ErrorSelector(Selector, Protocol):
    """A selector that knows with the order what every kept count of a group does to the layers that read it."""

    def orders_and_errors(self, problem: Problem) -> tuple[Ranking, RemovalErrors]:
        """Return what ``orders`` does, and the error of every kept count."""
        ...


@dataclass(frozen=True)
class Selection:
    """The order of every group's units, the inputs of all readers by layer, and errors where the selector knows them.

    From the order and the inputs any policy is refitted.
    """

    orders: Ranking
    inputs: Mapping[str, LayerInputs]
    errors: RemovalErrors | None


@dataclass(frozen=True)
class Refitted:
    """A reader's new weight, of its module's matrix shape with 0 where channels left, and what it does to its outputs.

    ``weight`` (conv_groups, C_out / conv_groups, columns); ``shift`` (C_out,) belongs into the bias; ``spread``
    (C_out,) is the variance of each output as a share of the dense one's, by which a batch norm's running variance
    changes.
    """

    weight: Tensor
    shift: Tensor
    spread: Tensor


def problem_of(calibration: Calibration, *, labels: bool = False, positions: int | None = POSITIONS) -> Problem:
    """Look at the readers of every group in one pass over the calibration data.

    Raises:
        BadInputError: as ``gather_inputs``, or a group that no convolution or linear layer reads.
    """
    model, trace = calibration.model, calibration.trace
    inputs = gather_inputs(model, trace, calibration.batches, labels=labels, positions=positions)
    return Problem(
        {group.name: _readers(model, trace, group.name, inputs) for group in trace.network.groups}, calibration
    )


def select(problem: Problem, selector: Selector) -> Selection:
    """Order every group's units.

    Raises:
        ValueError: a selector that breaks its promise.
    """
    errors: RemovalErrors | None = None
    if isinstance(selector, ErrorSelector):
        orders, errors = selector.orders_and_errors(problem)
    else:
        orders = selector.orders(problem)
    for group, readers in problem.readers.items():
        if sorted(orders[group].tolist()) != list(range(len(readers[0].columns))):
            raise ValueError(f"{type(selector).__name__} does not order every unit of group {group!r} once")
        if errors is not None and not _are_errors(errors[group], len(readers[0].columns)):
            raise ValueError(f"{type(selector).__name__} gives no falling errors for every count of group {group!r}")
    return Selection(orders, problem.inputs, errors)


def _are_errors(errors: NDArray[np.float64], units: int) -> bool:
    is_finite = errors.shape == (units + 1,) and bool(np.isfinite(errors).all())
    return is_finite and errors[-1] == 0.0 and bool((np.diff(errors) <= 0.0).all())


def refitted(inputs: LayerInputs, weight: Tensor, removed: Tensor, refit: str, damping: float = DAMPING) -> Refitted:
    """Refit one reader whose input channels ``removed`` (C_in / conv_groups,) bool leave, by a row of ``REFITS``.

    Raises:
        BadInputError: a Gram matrix that is singular in spite of the damping.
    """
    new = REFITS[refit](weight, inputs.gram, removed, inputs.taps, damping)
    if refit == "none":
        outputs = weight.shape[0] * weight.shape[1]
        return Refitted(new, weight.new_zeros(outputs), weight.new_ones(outputs))
    shift = ((weight - new) * inputs.mean[:, None]).sum(-1)
    before, after = (((w @ inputs.gram) * w).sum(-1) for w in (weight, new))
    spread = torch.where(before > 0, after / before, 1.0)
    return Refitted(new, shift.flatten(), spread.flatten())


def contributions(readers: Sequence[Reader]) -> NDArray[np.float64]:
    """Return M (U, U) of a group: each reader's ``channel_gram`` as a share of its output's energy, summed."""
    shares = (channel_gram(r.weight, r.inputs.gram, r.columns) / (r.energy or 1.0) for r in readers)
    total: NDArray[np.float64] = torch.stack(list(shares)).sum(0).numpy()
    return total


def _readers(model: nn.Module, trace: Trace, group: str, inputs: Mapping[str, LayerInputs]) -> tuple[Reader, ...]:
    readers = []
    for part in trace.slices[group]:
        path = part.tensor.rpartition(".")[0]
        if part.side is not Side.IN or path not in inputs:
            continue
        layer_inputs = inputs[path]
        channels = np.stack([np.unique(part.positions[unit]) for unit in trace.units[group]])  # (n_units, channels)
        columns = (channels[:, :, None] * layer_inputs.taps + np.arange(layer_inputs.taps)).reshape(len(channels), -1)
        readers.append(Reader(layer_inputs, weight_matrix(model.get_submodule(path)).cpu(), torch.from_numpy(columns)))
    if not readers:
        named = ", ".join(dict.fromkeys(_reader_names(model, trace, group)))
        raise BadInputError(
            f"no convolution or linear layer reads group {group!r}{f' (read by {named})' if named else ''}, so no "
            "selector can judge it; set selection.selector to null and choose a criterion"
        )
    return tuple(readers)


def _reader_names(model: nn.Module, trace: Trace, group: str) -> Iterator[str]:
    """What reads a group, with its type."""
    for part in trace.slices[group]:
        path = part.tensor.rpartition(".")[0]
        if part.side is Side.IN:
            yield f"{path}: {type(model.get_submodule(path)).__name__}"
