"""Network slimming: an L1 penalty on the scale of every channel, which makes needless channels small.

    loss + strength * sum |gamma|      (by subgradient: strength * sign(gamma) joins gamma's gradient)

gamma are the scales of the batch norms on a group's channels; a unit's score is the mean of their |gamma|. Groups
without a batch norm (feed-forward widths, heads, the stream of a transformer) get one scale a unit, 1 at first, on
what reads it, which is folded into the weights afterwards.

Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017 (arXiv 1708.06519). Departures:
scales keep the values of the trained network (the authors start at 0.5); the training loop puts no weight decay on
them; the constant act(beta) of a removed channel is not folded: recalibration and fine-tuning follow. On a network not
trained with the penalty |gamma| is a weak score.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError, LayerKind
from amcsearch.graph import Trace
from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.unit_slices import UnitSlices

__all__ = ["NetworkSlimming", "l1"]


def l1(scales: list[Tensor]) -> Tensor:
    """Sum of absolute values, a scalar; its gradient is the sign, 0 at 0."""
    return torch.stack([scale.abs().sum() for scale in scales]).sum()


@dataclass(frozen=True)
class NetworkSlimming(GateMethod):
    """Network slimming: L1 on batch-norm scales (``strength`` 1e-4 for VGG-19, 1e-5 for ResNet-164).

    Raises:
        BadInputError: a strength below 0, or as ``GateMethod``.
    """

    granularity: ClassVar[Literal["units"]] = "units"
    strength: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength >= 0.0:
            raise BadInputError(f"slimming: strength = {self.strength}, must be at least 0")

    def attach(self, model: nn.Module, trace: Trace, samples: int) -> Gate:
        """As ``GateMethod.attach``."""
        del samples
        return _SlimmingGate(model, trace, self)


class _SlimmingGate(Gate):
    drive: ClassVar[Literal["fixed"]] = "fixed"

    def __init__(self, model: nn.Module, trace: Trace, method: NetworkSlimming) -> None:
        super().__init__()
        self._slices, self._method = UnitSlices(model, trace), method
        parameters = dict(model.named_parameters())
        self._gammas: dict[str, list[tuple[Tensor, Tensor]]] = {}  # group -> (gamma, positions (n_units, m))
        for group in trace.network.groups:
            self._gammas[group.name] = [
                (parameters[part.tensor], torch.from_numpy(part.positions[trace.units[group.name]]).flatten(1))
                for part in trace.slices[group.name]
                if part.tensor.endswith("weight") and part.tensor in parameters and _is_batch_norm(trace, part.layer)
            ]
        free = [name for name, gammas in self._gammas.items() if not gammas]
        self.scales = nn.ParameterDict(
            {str(i): torch.ones(self._slices.counts[name], device=self._slices.device) for i, name in enumerate(free)}
        )
        self._free = {name: str(i) for i, name in enumerate(free)}

    def tensors(self) -> dict[str, Tensor]:
        if not self._free:
            return {}
        all_open = {name: torch.ones(count, device=self._slices.device) for name, count in self._slices.counts.items()}
        return self._slices.scaled({**all_open, **{name: self.scales[key] for name, key in self._free.items()}})

    def penalty(self) -> Tensor:
        gammas = {id(gamma): gamma for pairs in self._gammas.values() for gamma, _ in pairs}
        return self._method.strength * l1([*gammas.values(), *self.scales.values()])

    def density(self) -> dict[str, Tensor]:
        return {name: (score > 1e-2 * score.max()).to(score.dtype) for name, score in self.scores().items()}

    def scores(self) -> dict[str, Tensor]:
        by_group = {}
        for name, parts in self._gammas.items():
            if parts:
                sizes = [gamma.detach().abs()[where.to(gamma.device)].mean(1) for gamma, where in parts]
                by_group[name] = torch.stack(sizes).mean(0)
            else:
                by_group[name] = self.scales[self._free[name]].detach().abs()
        return by_group

    def final(self) -> dict[str, Tensor]:
        return self.tensors()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([*self.scales.values()] or [torch.zeros(1)], lr=self._method.learning_rate)


def _is_batch_norm(trace: Trace, layer: str) -> bool:
    return trace.network.layers[trace.network.layer_index[layer]].kind is LayerKind.BATCH_NORM
