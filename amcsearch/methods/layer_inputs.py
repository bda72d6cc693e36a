"""Mean and Gram matrix of the inputs of the layers that read pruned channels, from one pass over the data.

    mean = E[x],  G = E[(x - mean)(x - mean)^T]   where the layer's constant can be refitted (a bias, or a batch norm)
                  G = E[x x^T], mean = 0          where it has none

x is a row of X in Y = X W^T + b (see ``patches``). Rows are taken about each channel's mean in the first batch, so
products in the network's own precision, float32 as a rule, lose nothing to the mean; how they are multiplied and added
up is in ``products``. Never more than one batch's rows of one layer are held.

Memory: 8 * conv_groups * columns^2 bytes a layer, columns = C_in / conv_groups * kH * kW (a 3x3 convolution of 64
channels 2.7 MB, of 512 channels 170 MB); the sum over layers is checked against ``MEMORY_BYTES`` before anything is
computed.

Departures from the papers built on it (ThiNet, arXiv 1707.06342, and LASSO, arXiv 1707.06168: 10 positions an image):
more positions a sample, and the constant is always refitted, without which ReLU's means are taken for signal.
"""

import logging
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amcsearch.core import BadInputError, Side
from amcsearch.graph import Batch, Batches, Trace, channels_last, evaluating, takes_channels_last
from amcsearch.methods.patches import READERS, channel_means, tap_major_rows, taps_of
from amcsearch.methods.products import ROWS, Products, RunningMoments, are_shifts_cheaper

__all__ = [
    "MEMORY_BYTES",
    "POSITIONS",
    "ClassMoments",
    "LayerInputs",
    "following_norms",
    "gather_inputs",
    "read_calls",
    "unread_group",
    "why_too_large",
]

POSITIONS: Final = 128  # output positions a sample: all of an 8x8 map, an eighth of a 32x32 one
MEMORY_BYTES: Final = 4 * 2**30
_NOISE: Final = 256.0  # rounding errors of a sum of ROWS squares

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
class _ClassSums:
    """Running sums of one layer's pooled inputs by class."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    sums: Tensor = field(default_factory=lambda: torch.zeros(0))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Merge pooled features (n, C_in) with labels (n,); negative labels are left out."""
        features, labels = features[labels >= 0], labels[labels >= 0]
        if not len(labels):
            return
        known = len(self.counts)
        classes = max(known, int(labels.max()) + 1)
        one_hot = nn.functional.one_hot(labels, classes).to(features)
        counts, sums = one_hot.sum(0).cpu(), (one_hot.T @ features).cpu()
        if known:
            counts[:known] += self.counts
            sums[:known] += self.sums
        self.counts, self.sums = counts, sums
        self.squares = self.squares + features.square().sum(0).cpu()


@dataclass(frozen=True)
class _Call:
    """The last rows that were multiplied: layers that read the same tensor in the same way share their products."""

    x: Tensor
    version: int
    geometry: tuple[Any, ...]
    shift: Tensor | None
    products: Products


class _Gathering:
    """What one pass over the data gathers, call by call: layers are read while the network runs."""

    def __init__(self, modules: Mapping[str, Any], centred: AbstractSet[str], positions: int | None, seed: int) -> None:
        self.modules = modules
        self.positions = positions
        self.generator = torch.Generator().manual_seed(seed)
        self.moments = {layer: RunningMoments(layer in centred) for layer in modules}
        self.classes: dict[str, _ClassSums] = {layer: _ClassSums() for layer in modules}
        self.labels: Tensor | None = None
        self.last: _Call | None = None

    def read(self, layer: str, x: Tensor) -> None:
        """Take up one call of a layer."""
        module, moments = self.modules[layer], self.moments[layer]
        if self.labels is not None:
            self.classes[layer].add(*_pooled(module, x, self.labels))
        if not self._is_last(module, moments, x):
            self.last = self._call(module, moments, x)
        assert self.last is not None
        moments.shift = self.last.shift
        moments.add(self.last.products)

    def _is_last(self, module: nn.Module, moments: RunningMoments, x: Tensor) -> bool:
        last = self.last
        if last is None or last.x is not x or last.version != x._version or last.geometry != _geometry(module):
            return False
        if not moments.rows:
            return moments.is_centred == (last.shift is not None)
        return moments.shift is last.shift

    def _call(self, module: nn.Module, moments: RunningMoments, x: Tensor) -> _Call:
        values = x if x.dtype in (torch.float32, torch.float64) else x.float()
        shift = moments.shift
        if moments.is_centred and shift is None:
            shift = channel_means(module, values)
        if isinstance(module, nn.Conv2d) and are_shifts_cheaper(module, values, self.positions):
            products = Products.of_shifts(module, values, shift)
        else:
            products = Products.of(
                tap_major_rows(module, values, self.positions, self.generator, shift=shift, count=ROWS)
            )
        return _Call(x, x._version, _geometry(module), shift, products)


def _geometry(module: nn.Module) -> tuple[Any, ...]:
    """Return what decides a layer's rows beside its input."""
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return (isinstance(module, nn.Linear), *(getattr(module, name, None) for name in names))


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
        positions: output positions (or tokens) drawn for each batch; None takes all, and so does a convolution where
            all of them cost no more.
        seed: of that draw.

    Raises:
        BadInputError: targets that are no class ids, inputs of a layer that are not finite, or Gram matrices beyond
            ``MEMORY_BYTES``.
    """
    modules = _reading_modules(model, trace)
    too_large = _too_large(modules)
    if too_large is not None:
        raise BadInputError(f"{too_large}; choose a criterion and reconstruction: none")
    torch_device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        order = channels_last if takes_channels_last(model, batches) else torch.detach
        norms = following_norms(model, modules, next(iter(batches.batched(1))).to(torch_device))
        centred = {layer for layer, m in modules.items() if m.bias is not None or layer in norms}
        gathering = _Gathering(modules, centred, positions, seed)
        for batch in (each.to(torch_device) for each in batches):
            gathering.labels = _class_ids(batch) if labels else None
            read_calls(model, modules, batch.map(order), gathering.read)
    gathering.last = None
    return {
        layer: _finish(layer, m, norms.get(layer), gathering.moments.pop(layer), gathering.classes[layer])
        for layer, m in modules.items()
        if gathering.moments[layer].rows
    }


def _class_ids(batch: Batch) -> Tensor:
    targets = batch.targets
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        return targets
    kind = targets.dtype if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
    raise BadInputError(f"moments by class need class ids, the targets are {kind}; choose another selector")


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


def unread_group(model: nn.Module, trace: Trace, sample: Batch) -> str | None:
    """Name a group of which no reader's inputs are seen; None where every group has such a reader.

    That is a convolution or linear layer which is called as a module, tried on ``sample``.
    """
    called = set[str]()
    with evaluating(model), torch.no_grad():
        read_calls(model, _reading_modules(model, trace), sample, lambda layer, _: called.add(layer))
    for group, parts in trace.slices.items():
        if not any(part.side is Side.IN and part.tensor.rpartition(".")[0] in called for part in parts):
            return group
    return None


def why_too_large(model: nn.Module, trace: Trace) -> str | None:
    """Say that the Gram matrices take more than ``MEMORY_BYTES``; None where they do not."""
    return _too_large(_reading_modules(model, trace))


def _too_large(modules: Mapping[str, Any]) -> str | None:
    sizes = {layer: 8 * getattr(m, "groups", 1) * m.weight[0].numel() ** 2 for layer, m in modules.items()}
    total = sum(sizes.values())
    if total <= MEMORY_BYTES:
        return None
    takes = f"Gram matrices would take {total / 2**30:.1f} GiB, at most {MEMORY_BYTES / 2**30:.0f} GiB"
    return f"{takes} (the largest is that of {max(sizes, key=lambda layer: sizes[layer])})"


def read_calls(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch, read: Callable[[str, Tensor], None]
) -> None:
    """Run the model on a batch and call ``read(layer, input)`` just before every call of some layers with an input.

    The input may change afterwards, in place: read it at once.
    """
    with ExitStack() as stack:
        for layer, module in modules.items():

            def enter(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], name: str = layer) -> None:
                x = args[0] if args else kwargs["input"]
                if x.numel():  # an expert may get no token
                    read(name, x)

            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        batch.through(model)


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


def _finish(layer: str, module: Any, norm: str | None, moments: RunningMoments, classes: _ClassSums) -> LayerInputs:
    bias = f"{layer}.bias" if module.bias is not None else None
    mean, gram = moments.finish(taps_of(module), _NOISE * torch.finfo(module.weight.dtype).eps)
    if not (gram.isfinite().all() and mean.isfinite().all()):
        raise BadInputError(
            f"what layer {layer!r} reads is not finite on the calibration data, so its channels cannot be compared; "
            "look for a division by 0 or an overflow before it"
        )
    by_class = ClassMoments(classes.counts, classes.sums, classes.squares) if len(classes.counts) else None
    return LayerInputs(layer, f"{layer}.weight", bias, norm, taps_of(module), moments.rows, mean, gram, by_class)
