"""Mean and Gram matrix of the inputs of the layers that read pruned channels, from one pass over the data.

    mean = E[x],  G = E[(x - mean)(x - mean)^T]   where the layer's constant can be refitted (a bias, or a batch norm)
                  G = E[x x^T], mean = 0          where it has none

x is a row of X in Y = X W^T + b (see ``patches``). Batches are merged exactly by Chan's rule, M2 = M2_a + M2_b +
d d^T n_a n_b / n, in double precision; never more than one batch's rows of one layer are held.

Memory: 8 * conv_groups * columns^2 bytes a layer, columns = C_in / conv_groups * kH * kW (a 3x3 convolution of 64
channels 2.7 MB, of 512 channels 170 MB); the sum over layers is checked against ``MEMORY_BYTES`` before anything is
computed.

Departures from the papers built on it (ThiNet, arXiv 1707.06342, and LASSO, arXiv 1707.06168: 10 positions an image):
more positions a sample, and the constant is always refitted, without which ReLU's means are taken for signal.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amcsearch.core import BadInputError, Side
from amcsearch.graph import Batch, Batches, Trace, evaluating
from amcsearch.methods.patches import READERS, patches

__all__ = ["MEMORY_BYTES", "POSITIONS", "ClassMoments", "LayerInputs", "calls_of", "following_norms", "gather_inputs"]

POSITIONS: Final = 128  # output positions a sample: all of an 8x8 map, an eighth of a 32x32 one
MEMORY_BYTES: Final = 4 * 2**30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassMoments:
    """Of a layer's inputs pooled over positions, by class: ``counts`` (K,), ``sums`` (K, C_in), ``squares`` (C_in,)."""

    counts: Tensor
    sums: Tensor
    squares: Tensor


@dataclass(frozen=True)
class LayerInputs:
    """One layer that reads pruned channels: names of its tensors and moments of its inputs, float64 on the CPU.

    ``norm`` is the batch norm that reads the layer's output, whose running mean stands in for a missing bias.
    ``mean`` (conv_groups, columns), ``gram`` (conv_groups, columns, columns); ``taps`` columns belong to a channel.
    """

    layer: str
    weight: str
    bias: str | None
    norm: str | None
    taps: int
    rows: int
    mean: Tensor
    gram: Tensor
    classes: ClassMoments | None = None


@dataclass
class _RunningMoments:
    """Running moments of one layer."""

    rows: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(()))
    counts: Tensor | None = None
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, rows: Tensor, centred: bool) -> None:
        """Merge rows (conv_groups, n, columns)."""
        new, total = rows.shape[1], self.rows + rows.shape[1]
        mean = rows.mean(1) if centred else torch.zeros_like(rows[:, 0])
        rows = rows - mean[:, None]
        step = (mean - self.mean.to(mean.device)).cpu()
        self.scatter = self.scatter + (rows.mT @ rows).cpu()
        self.scatter += step[:, :, None] * step[:, None] * (self.rows * new / total)
        self.mean = self.mean + step * (new / total)
        self.rows = total

    def classify(self, features: Tensor, labels: Tensor) -> None:
        """Merge pooled features (n, C_in) with labels (n,); negative labels are left out."""
        features, labels = features[labels >= 0], labels[labels >= 0]
        if not len(labels):
            return
        known = 0 if self.counts is None else len(self.counts)
        classes = max(known, int(labels.max()) + 1)
        one_hot = nn.functional.one_hot(labels, classes).to(features)
        counts, sums = one_hot.sum(0).cpu(), (one_hot.T @ features).cpu()
        if self.counts is not None:
            counts[:known] += self.counts
            sums[:known] += self.sums
        self.counts, self.sums = counts, sums
        self.squares = self.squares + features.square().sum(0).cpu()


def gather_inputs(
    model: nn.Module,
    trace: Trace,
    batches: Batches,
    *,
    labels: bool = False,
    positions: int | None = POSITIONS,
    seed: int = 0,
) -> dict[str, LayerInputs]:
    """Return the inputs' moments of every convolution and linear layer that reads a group, by layer, in eval mode.

    Layers of other types, and weights that plain code multiplies with, are left out and named in the log. The model is
    left as found.

    Args:
        model: the dense network.
        trace: its channel groups.
        batches: calibration data.
        labels: gather the moments by class too; the targets are class ids (N,) or (N, T).
        positions: output positions (or tokens) drawn for each batch; None takes all.
        seed: of that draw.

    Raises:
        BadInputError: targets that are no class ids, inputs of a layer that are not finite, or Gram matrices beyond
            ``MEMORY_BYTES``.
    """
    modules = _reading_modules(model, trace)
    _check_memory(modules)
    torch_device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model), torch.no_grad():
        norms = following_norms(model, modules, next(iter(batches.batched(1))).to(torch_device))
        centred = {layer: m.bias is not None or layer in norms for layer, m in modules.items()}
        moments = {layer: _RunningMoments() for layer in modules}
        for batch in (each.to(torch_device) for each in batches):
            ids = _class_ids(batch) if labels else None
            for layer, x in calls_of(model, modules, batch):
                rows = patches(modules[layer], x, positions, generator).double()
                moments[layer].add(rows, centred[layer])
                if ids is not None:
                    moments[layer].classify(*_pooled(modules[layer], x, ids))
    return {
        layer: _finish(layer, m, norms.get(layer), moments[layer])
        for layer, m in modules.items()
        if moments[layer].rows
    }


def _class_ids(batch: Batch) -> Tensor:
    targets = batch.targets
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        return targets
    what = targets.dtype if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
    raise BadInputError(f"moments by class need class ids, the targets are {what}; choose another selector")


def _reading_modules(model: nn.Module, trace: Trace) -> dict[str, Any]:
    """Layer → module, in order of execution, of every supported layer that some group is read by."""
    modules, others = {}, set()
    for part in (part for parts in trace.slices.values() for part in parts if part.side is Side.IN):
        path, _, leaf = part.tensor.rpartition(".")
        module = model.get_submodule(path)
        if leaf == "weight" and isinstance(module, READERS):
            modules[path] = module
        else:
            others.add(f"{part.layer} ({type(module).__name__})")
    for name in sorted(others):
        _log.info("not refitted: %s reads pruned channels, but is no linear layer or convolution", name)
    order = trace.network.layer_index
    return dict(sorted(modules.items(), key=lambda item: order.get(item[0], len(order))))


def _check_memory(modules: Mapping[str, Any]) -> None:
    sizes = {layer: 8 * getattr(m, "groups", 1) * m.weight[0].numel() ** 2 for layer, m in modules.items()}
    if sum(sizes.values()) > MEMORY_BYTES:
        largest = max(sizes, key=lambda layer: sizes[layer])
        raise BadInputError(
            f"Gram matrices would take {sum(sizes.values()) / 2**30:.1f} GiB, at most {MEMORY_BYTES / 2**30:.0f} GiB "
            f"(the largest is that of {largest}); choose a criterion and reconstruction: none"
        )


def calls_of(model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield (layer, input) of every call of some layers in one forward pass, in order of execution."""
    calls: deque[tuple[str, Tensor]] = deque()
    with ExitStack() as stack:
        for layer, module in modules.items():
            hook = module.register_forward_pre_hook(lambda _, args, name=layer: calls.append((name, args[0])))
            stack.callback(hook.remove)
        batch.through(model)
    while calls:
        yield calls.popleft()  # lets go of each input once it has been used


def following_norms(model: nn.Module, modules: Mapping[str, nn.Module], sample: Batch) -> dict[str, str]:
    """Layer → path of the batch norm with running statistics that is called on exactly its output, in one pass."""
    written: dict[int, tuple[Tensor, str]] = {}  # the tensor is held, so that its id is not given again
    norms: dict[str, str] = {}

    def leave(layer: str) -> Any:
        return lambda _, __, output: written.__setitem__(id(output), (output, layer))

    def enter(path: str) -> Any:
        return lambda _, args: norms.update({written[id(x)][1]: path for x in args[:1] if id(x) in written})

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.callback(module.register_forward_hook(leave(layer)).remove)
        for path, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                stack.callback(module.register_forward_pre_hook(enter(path)).remove)
        sample.through(model)
    return norms


def _pooled(module: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, C_in) averaged over positions, labels (n,): a row a sample, or a token where labels are (N, T)."""
    if not isinstance(module, nn.Linear):
        x = x.flatten(2).mT  # (N, positions, C_in)
    if labels.ndim > 1 and x.shape[:2] == labels.shape:
        return x.reshape(-1, x.shape[-1]).double(), labels.reshape(-1)
    return x.double().reshape(len(x), -1, x.shape[-1]).mean(1), labels


def _finish(layer: str, module: Any, norm: str | None, moments: _RunningMoments) -> LayerInputs:
    taps = module.weight[0, 0].numel()
    bias = f"{layer}.bias" if module.bias is not None else None
    classes = None if moments.counts is None else ClassMoments(moments.counts, moments.sums, moments.squares)
    gram = moments.scatter / moments.rows
    if not (gram.isfinite().all() and moments.mean.isfinite().all()):
        raise BadInputError(
            f"what layer {layer!r} reads is not finite on the calibration data, so its channels cannot be compared; "
            "look for a division by 0 or an overflow before it"
        )
    return LayerInputs(layer, f"{layer}.weight", bias, norm, taps, moments.rows, moments.mean, gram, classes)
