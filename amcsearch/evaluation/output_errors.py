"""What of a selector's errors reaches the network's outputs.

A selector knows what every kept count of a group does to the layers that read it (``methods.RemovalErrors``). How much
of that matters depends on what follows: a branch beside a strong shortcut may lose half for nothing. So every group g
is cut alone. With D(k) = |y(k) - y|² / |y|² for the outputs y of the dense network and y(k) of the one where g keeps k
of its K units,

    e_g(k) <- e_g(k) · r_g(k),   r_g(k) = D(k) / e_g(k) at k = K/8 and at K/2,

and elsewhere r_g is a power of k through both. Where a group can vanish, D(0) is the error of keeping nothing.

That least sums of these errors give better networks is measured (benchmarks/ladder.md), not derived.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from amcsearch.core import BadInputError, NetworkSpec, PolicySpace, PruningPolicy
from amcsearch.costs import Macs
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.evaluation.sensitivity import spread
from amcsearch.graph import Batch, Batches, Tree, output_tensors
from amcsearch.methods import RemovalErrors
from amcsearch.training import outputs_apart

__all__ = ["corrected", "errors_at_outputs", "looked_at"]

_HALF: Final = 1 / 2  # pruning ratios
_NARROW: Final = 7 / 8
_STEEPEST: Final = 2.0  # power of the kept count: what says more is noise
_LEAST: Final = 1e-9  # what is less is rounding
_MOST: Final = 128  # samples
_FEWEST: Final = 8
_WORK: Final = 2e11  # multiply-accumulates in all: half a minute of one core, where convolutions are depthwise
_OUTPUT_BYTES: Final = 64 * 2**20  # of the dense network's outputs

Distances = Mapping[int, float]
"""Kept units of a group → D(k)."""


def errors_at_outputs(
    evaluator: Evaluator, calibration: Batches, space: PolicySpace, errors: RemovalErrors
) -> RemovalErrors:
    """Return a selector's errors as they reach the network's outputs, for every kept count as ``RemovalErrors`` are.

    Up to 128 samples of ``calibration`` are looked at: fewer, but 8 or more, where all networks together would take
    over 2·10¹¹ multiply-accumulates, and no more than have outputs of 64 MiB. Batch norms keep their statistics. The
    errors come back unchanged where outputs do not compare: they hold no floating-point tensor whose shape is the same
    for all policies, or none is finite once a group is cut.

    Raises:
        BadInputError: as ``Evaluator.pruned``.
    """
    network = evaluator.trace.network
    _, samples = looked_at(space, network, calibration.samples)
    apart = _distance(evaluator.without_recalibration(), calibration, samples)
    distances = {}
    for group, cuts in zip(space.groups, _cuts(space), strict=True):
        policies = {kept: PruningPolicy({**network.dense, group.name: kept}) for kept in cuts}
        distances[group.name] = {kept // group.unit: apart(policy) for kept, policy in policies.items()}
    return corrected(errors, distances)


def looked_at(space: PolicySpace, network: NetworkSpec, samples: int) -> tuple[int, int]:
    """Return how many networks ``errors_at_outputs`` runs, and on how many of some samples."""
    networks = 1 + sum(map(len, _cuts(space)))  # and the dense one
    work = networks * max(1.0, sum(map(Macs().layer_cost, network.layers)))
    return networks, min(samples, _MOST, max(_FEWEST, int(_WORK / work)))


def corrected(errors: RemovalErrors, distances: Mapping[str, Distances]) -> RemovalErrors:
    """Return errors as they reach the outputs, from what was measured of each group: at 0 units or not, and elsewhere.

    What is not finite is passed over, and so is an error of the layers that is rounding. A group of which nothing is
    left takes the median of the others' ratios.
    """
    ratios: dict[str, Distances] = {}
    for name, far in distances.items():
        known = {kept: max(distance, _LEAST) for kept, distance in far.items() if math.isfinite(distance)}
        ratios[name] = {
            kept: distance / errors[name][kept] for kept, distance in known.items() if errors[name][kept] > _LEAST
        }
    narrowest = [of_group[min(of_group)] for of_group in ratios.values() if of_group]
    if not narrowest:
        return errors
    usual = {1: float(np.median(narrowest))}
    return {name: _scaled(of_group, ratios.get(name) or usual) for name, of_group in errors.items()}


def _scaled(errors: NDArray[np.float64], ratios: Mapping[int, float]) -> NDArray[np.float64]:
    """Multiply the errors of 0, 1, … units by a power of the count through the ratios; that of 0 by its own."""
    counted = sorted(kept for kept in ratios if kept > 0) or [0]
    narrow, wide = counted[0], counted[-1]
    power = math.log(ratios[wide] / ratios[narrow]) / math.log(wide / narrow) if wide > narrow else 0.0
    kept = np.maximum(np.arange(len(errors)), 0.5)  # nothing kept is as far from one unit as one is from two
    scaled = errors * ratios[narrow] * (kept / max(narrow, 0.5)) ** np.clip(power, -_STEEPEST, _STEEPEST)
    if 0 in ratios:
        scaled[0] = errors[0] * ratios[0]
    return np.maximum.accumulate(scaled[::-1])[::-1]


def _cuts(space: PolicySpace) -> Iterator[list[int]]:
    """Yield the kept channels at which each group is cut: an eighth, a half, and none where it may vanish."""
    for g, (group, choices) in enumerate(zip(space.groups, space.choices, strict=True)):
        cuts = {space.nearest_choice(g, _NARROW), space.nearest_choice(g, _HALF)} | ({0} & set(choices.tolist()))
        yield sorted(cuts - {group.channels})


def _distance(evaluator: Evaluator, calibration: Batches, samples: int) -> Callable[[PruningPolicy], float]:
    """Return what tells how far a policy's outputs are from the dense ones; NaN where they do not compare."""
    torch_device = next(iter(evaluator.model.parameters())).device

    def chosen(count: int) -> list[Batch]:
        rows = spread(np.arange(calibration.samples), count)
        return [batch.to(torch_device) for batch in calibration.chosen(rows.tolist())]

    with torch.inference_mode():
        few = chosen(min(samples, _FEWEST))
        held = sum(tensor.nbytes for batch in few for tensor in output_tensors(batch.through(evaluator.model)))
        fitting = _OUTPUT_BYTES * min(samples, _FEWEST) // max(1, held)
        batches = chosen(max(1, min(samples, fitting)))
        dense = [batch.through(evaluator.model) for batch in batches]
    sizes = [batch.size for batch in batches]

    def apart(policy: PruningPolicy) -> float:
        smaller = evaluator.pruned(policy)
        with torch.inference_mode():
            pairs = zip(batches, dense, strict=True)
            return float(np.average([_apart(batch.through(smaller), whole) for batch, whole in pairs], weights=sizes))

    return apart


def _apart(outputs: Tree, dense: Tree) -> float:
    try:
        return float(outputs_apart(outputs, dense))
    except BadInputError:  # no output of one shape in common
        return math.nan
