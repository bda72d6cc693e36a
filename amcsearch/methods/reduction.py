"""Reductions: from the saliencies of coupled tensors to one score for each unit.

A unit (a channel, an attention head, one channel of each conv group) owns a slice of several tensors: its *members*.
Each member's saliency is first summed over its slice. A reduction then chooses members, combines them and finishes:

    magnitude             mean (or sum, max, first) over all members
    signed first order    sum over the members of ONE side, then square or abs: one gate moves all members at once.
                          The sums over producers and over consumers are equal where the path between them is positively
                          homogeneous (ReLU, pooling, residual add), so adding both would count everything twice.

Consumers are the side of choice: a gate on what every consumer reads is exactly the removal, through any activation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from amcsearch.core import LayerKind, LayerSpec, Side

__all__ = ["REDUCTIONS", "Member", "Reduction", "consumers", "last_stages", "norms"]


@dataclass(frozen=True)
class Member:
    """One coupled tensor: ``index`` is its layer's place in order of execution, ``scores`` (…, n_units) float64."""

    layer: LayerSpec
    index: int
    side: Side
    scores: Tensor


@dataclass(frozen=True)
class Reduction:
    """``finish(combine(stack of the selected members (M, n_units)))``."""

    select: Callable[[Sequence[Member]], Sequence[Member]]
    combine: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]

    def __call__(self, members: Sequence[Member]) -> Tensor:
        """Return scores, shape (…, n_units), of one group's members."""
        return self.finish(self.combine(torch.stack([member.scores for member in self.select(members)])))


def everyone(members: Sequence[Member]) -> Sequence[Member]:
    """Return all members."""
    return members


def consumers(members: Sequence[Member]) -> Sequence[Member]:
    """Members that read the channels and mix them; the producers' last stages where no weight reads them."""
    readers = [m for m in members if m.side is Side.IN and not _is_channelwise(m.layer)]
    return readers or last_stages(members)


def last_stages(members: Sequence[Member]) -> Sequence[Member]:
    """Return the producers' members just before the channels are read: one stage a producer.

    A stage is superseded when the next layer of the network rewrites the same channels one by one (a convolution by its
    batch norm, that by a depthwise convolution). Norms that mix channels read a stream; they are no stage of it.
    """
    writers = [m for m in members if m.side is Side.OUT and m.layer.kind not in _MIXING_NORMS]
    rewritten = {m.index - 1 for m in writers if _is_channelwise(m.layer)}
    return [m for m in writers if m.index not in rewritten] or writers or members


def norms(members: Sequence[Member]) -> Sequence[Member]:
    """Batch norms that scale the channels; the producers' last stages where there is none."""
    return [m for m in members if m.layer.kind is LayerKind.BATCH_NORM] or last_stages(members)


def _is_channelwise(layer: LayerSpec) -> bool:
    return layer.is_depthwise or layer.kind is LayerKind.BATCH_NORM or layer.kind in _MIXING_NORMS


_MIXING_NORMS = (LayerKind.LAYER_NORM, LayerKind.GROUP_NORM)


def _mean(stack: Tensor) -> Tensor:
    return stack.mean(0)


def _sum(stack: Tensor) -> Tensor:
    return stack.sum(0)


def _max(stack: Tensor) -> Tensor:
    return stack.amax(0)


def _first(stack: Tensor) -> Tensor:
    return stack[0]


def _root(scores: Tensor) -> Tensor:
    return scores.clamp(min=0.0).sqrt()


def _half_squared(scores: Tensor) -> Tensor:
    return 0.5 * scores.square()


def _as_is(scores: Tensor) -> Tensor:
    return scores


REDUCTIONS: Final[Mapping[str, Reduction]] = {
    "mean": Reduction(everyone, _mean, _as_is),
    "sum": Reduction(everyone, _sum, _as_is),
    "max": Reduction(everyone, _max, _as_is),
    "first": Reduction(everyone, _first, _as_is),
    "consumers_sum": Reduction(consumers, _sum, _as_is),
    "consumers_absolute": Reduction(consumers, _sum, torch.abs),
    "consumers_squared": Reduction(consumers, _sum, torch.square),
    "consumers_half_squared": Reduction(consumers, _sum, _half_squared),
    "consumers_mean": Reduction(consumers, _mean, _as_is),
    "consumers_root": Reduction(consumers, _sum, _root),
    "norms_mean": Reduction(norms, _mean, _as_is),
    "norms_sum": Reduction(norms, _sum, _as_is),
    "last_stages_squared": Reduction(last_stages, _sum, torch.square),
}
