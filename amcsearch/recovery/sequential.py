"""Refit a pruned network layer by layer, each from its actual inputs: slower, and closer to the dense network.

    W* = argmin E||y - W x'||^2 + ridge ||W - W_K||^2,   W* = W_K + (G' + ridge)^-1 (P - G' W_K^T), as rows
    y the dense layer's output, x' its input in the network refitted so far, G' = E[x' x'^T], P = E[x' y^T]

Layers are refitted in order of execution, as He et al. 2017 (arXiv 1707.06168) do. Later layers compensate the errors
of earlier ones, also layers that lost no inputs themselves. The constant, and the statistics of a batch norm after
it, are handled as in ``refit``. The dense outputs y are gathered once, at drawn positions, in single precision; a
policy costs one forward pass over the calibration data for every layer that reads pruned channels.

Departure: the target of a residual block's last convolution is the dense convolution's output alone. He et al. also
add the error of the shortcut, but a trace does not say which outputs are added.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Batches, Kept, Trace, check_kept, evaluating, removed_positions, vanished_layers
from amcsearch.methods import (
    DAMPING,
    MEMORY_BYTES,
    POSITIONS,
    LayerInputs,
    patches,
    read_calls,
    refit_drifted,
    weight_matrix,
)

__all__ = ["SequentialReconstruction"]


class SequentialReconstruction:
    """Refits pruned copies of one dense network on calibration data; can be sent to worker processes.

    Raises:
        BadInputError: damping below 0, or dense outputs beyond ``MEMORY_BYTES``.
    """

    refit = "sequential"

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        inputs: Mapping[str, LayerInputs],
        batches: Batches,
        *,
        damping: float = DAMPING,
        positions: int | None = POSITIONS,
    ) -> None:
        if not damping >= 0.0:
            raise BadInputError(f"reconstruction: damping = {damping}, must be at least 0 ({DAMPING} as a rule)")
        self.trace = trace
        self.damping = damping
        self.positions = positions
        self._inputs = dict(inputs)
        self._batches = batches
        with evaluating(model), torch.no_grad():
            self._check_size(model)
            self._targets = self._dense_outputs(model)

    def _check_size(self, model: nn.Module) -> None:
        """Refuse dense outputs of more than ``MEMORY_BYTES``, by how many rows the first batch has.

        ``LayerInputs.rows`` do not tell: they count all positions of a layer whose moments took all of them.
        """
        modules, first = _modules(model, self._inputs), next(iter(self._batches))
        a_batch: list[int] = []
        self._read_rows(model, modules, lambda layer, rows: a_batch.append(_bytes(modules[layer], rows)), [first])
        size = sum(a_batch) * self._batches.samples / first.size
        if size > MEMORY_BYTES:
            raise BadInputError(
                f"the dense outputs would take {size / 2**30:.1f} GiB, at most {MEMORY_BYTES / 2**30:.0f} GiB; "
                "give fewer calibration samples, or choose reconstruction: least_squares"
            )

    def _dense_outputs(self, model: nn.Module) -> dict[str, Tensor]:
        """Layer → outputs (conv_groups, rows, O) of the dense network, without its bias."""
        modules = _modules(model, self._inputs)
        weights = {layer: weight_matrix(module) for layer, module in modules.items()}
        outputs: dict[str, list[Tensor]] = {layer: [] for layer in modules}
        self._read_rows(
            model, modules, lambda layer, rows: outputs[layer].append((rows @ weights[layer].mT).float().cpu())
        )
        return {layer: torch.cat(outputs.pop(layer), 1) for layer in modules}  # one layer at a time is there twice

    def apply(self, smaller: nn.Module, kept: Kept) -> None:
        """Refit, in place, every layer that reads groups; ``smaller`` is ``remove(model, trace, kept)``.

        Raises:
            BadInputError: kept channels that do not fit the trace, or a Gram matrix that cannot be solved.
        """
        removed = check_kept(self.trace, kept)
        if not removed:
            return
        gone, vanished = removed_positions(self.trace, removed), vanished_layers(self.trace, kept)
        with evaluating(smaller), torch.no_grad():
            for layer, layer_inputs in self._inputs.items():
                targets = _kept_outputs(self._targets[layer], gone.get((layer_inputs.weight, 0)))
                if layer in vanished.constant:
                    shift = targets.double().mean(1).flatten()
                    _set_constant(smaller, layer_inputs, shift, torch.ones_like(shift))
                elif layer not in vanished.silent:
                    self._refit(smaller, layer_inputs, targets)

    def _refit(self, smaller: nn.Module, layer_inputs: LayerInputs, targets: Tensor) -> None:
        """Fit one layer to targets (conv_groups, rows, kept outputs); means and sums are gathered batch by batch."""
        modules: dict[str, Any] = _modules(smaller, [layer_inputs.layer])
        module = modules[layer_inputs.layer]
        centred = layer_inputs.bias is not None or layer_inputs.norm is not None
        wanted = targets.double().mean(1, keepdim=True) if centred else torch.zeros(1, dtype=torch.float64)
        sums = _Sums(targets, wanted, centred)
        self._read_rows(smaller, modules, lambda _, rows: sums.add(rows.cpu()))
        assert sums.offset is not None
        total, gram, cross = (each / sums.rows for each in sums.parts)
        if centred:
            gram = gram - total[:, :, None] * total[:, None]
        mean = sums.offset[:, 0] + total
        weight = refit_drifted(weight_matrix(module).cpu(), gram, cross, self.damping)
        module.weight.copy_(weight.reshape(module.weight.shape))
        if centred:
            output = (weight @ gram * weight).sum(-1).flatten()
            shift = wanted[:, 0].flatten() - (weight @ mean[:, :, None]).flatten()
            _set_constant(smaller, layer_inputs, shift, output / targets.double().var(1, correction=0).flatten())

    def _read_rows(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        take: Callable[[str, Tensor], None],
        batches: Iterable[Batch] | None = None,
    ) -> None:
        """Give ``take`` (layer, rows (conv_groups, n, columns)), call by call, at the same positions in any network."""
        torch_device = next(model.parameters()).device
        generators = {layer: torch.Generator().manual_seed(i) for i, layer in enumerate(self._inputs)}

        def read(layer: str, x: Tensor) -> None:
            take(layer, patches(modules[layer], x, self.positions, generators[layer]).double())

        for batch in self._batches if batches is None else batches:
            read_calls(model, modules, batch.to(torch_device), read)


@dataclass
class _Sums:
    """Running sums of one layer: of its rows x, x^T x and x^T y, y the targets about their mean ``wanted``.

    Where they are centred, x is about the first batch's mean: near enough to the mean for what is subtracted later.
    """

    targets: Tensor
    wanted: Tensor
    is_centred: bool
    offset: Tensor | None = None
    rows: int = 0
    parts: tuple[Tensor, ...] = ()

    def add(self, rows: Tensor) -> None:
        """Add rows (conv_groups, n, columns), the next n of the targets'."""
        if self.offset is None:
            self.offset = rows.mean(1, keepdim=True) if self.is_centred else torch.zeros_like(rows[:, :1])
        x = rows - self.offset
        y = self.targets[:, self.rows : self.rows + rows.shape[1]].double() - self.wanted
        self.rows += rows.shape[1]
        more = x.sum(1), x.mT @ x, x.mT @ y
        self.parts = tuple(a + b for a, b in zip(self.parts, more, strict=True)) if self.parts else more


def _modules(model: nn.Module, layers: Mapping[str, LayerInputs] | list[str]) -> dict[str, nn.Module]:
    return {layer: model.get_submodule(layer) for layer in layers}


def _bytes(module: nn.Module, rows: Tensor) -> int:
    """Of a layer's outputs, in single precision, for rows (conv_groups, n, columns)."""
    assert isinstance(module.weight, Tensor)
    return 4 * rows.shape[1] * len(module.weight)


def _kept_outputs(targets: Tensor, gone: NDArray[np.int64] | None) -> Tensor:
    """Targets (conv_groups, rows, O) without the removed outputs; as many leave every conv group."""
    if gone is None:
        return targets
    rows = np.delete(np.arange(targets.shape[0] * targets.shape[2]), gone).reshape(len(targets), -1)
    columns = torch.from_numpy(rows % targets.shape[2])  # (conv_groups, kept)
    return torch.stack([part[:, kept] for part, kept in zip(targets, columns, strict=True)])


def _set_constant(smaller: nn.Module, layer_inputs: LayerInputs, shift: Tensor, spread: Tensor) -> None:
    """Add the missing mean to the bias or to the norm's running mean, and scale its running variance."""
    if layer_inputs.bias is not None:
        bias = smaller.get_parameter(layer_inputs.bias)
        bias.add_(shift.to(bias))
    if layer_inputs.norm is not None:
        mean, variance = (smaller.get_buffer(f"{layer_inputs.norm}.running_{name}") for name in ("mean", "var"))
        variance.mul_(torch.where(torch.isfinite(spread), spread, 1.0).to(variance))
        if layer_inputs.bias is None:
            mean.sub_(shift.to(mean))
