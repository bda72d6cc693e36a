"""Tracing: from a module and an example to shapes and channel groups.

The module runs once. Beside every tensor go labels that say which channel each element belongs to (``labels``,
``flow``): moving data moves labels, element-wise operations tie them, products tie what they sum over. Channels that
move together make groups (``grouping``). An operation that cannot be followed costs the channels that reach it. All
groups are then checked by experiment: removing channels must compute what masking them does, in the shapes predicted.

All groups are checked at once, each with a random half of its units, twice. Only where that fails, halves of the groups
are checked until every one at fault is known: n groups of which k are wrong take about 2 k log2(n) runs. The model's
vectors (norms, biases, layer scales) are drawn at random in a copy, because a vector of zeros would make a wrong
removal look right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, LayerSpec, NetworkSpec, PruningPolicy, Side, described
from amcsearch.graph.batch import Batch, as_batch, tensors_of_tree
from amcsearch.graph.masks import masked
from amcsearch.graph.packed_attention import free_heads
from amcsearch.graph.removal import duplicate, remove
from amcsearch.graph.slices import Kept, Skipped, Trace, WidthAttribute
from amcsearch.graph.tracing.assemble import Assembler
from amcsearch.graph.tracing.flow import Flow
from amcsearch.graph.tracing.grouping import OUTPUT, settle
from amcsearch.graph.tracing.labels import Slots
from amcsearch.graph.tracing.layer_types import layer_type
from amcsearch.graph.tracing.operators import RULES, unlisted
from amcsearch.graph.tracing.recorder import UNUSED, Observation, observe

__all__ = ["trace", "verified"]

_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the largest output; structural mistakes are of order 1."""
_DRAWS: Final = 2
_SEED: Final = 0


def trace(model: nn.Module, example: Tensor | Batch, *, verify: bool = True) -> Trace:
    """Return the shapes, channel groups and tensor slices of any torch module.

    Args:
        model: left untouched (mode, gradients, hooks): a copy is traced in eval mode.
        example: one sample, as the network takes it; a tensor (1, …) is that of a network of one argument.
        verify: mask half of each group, remove it, and compare the outputs; a group that differs, or that changes
            the shape of an output, is moved to ``skipped`` with the reason.

    Raises:
        BadInputError: the example has another batch size, or the model cannot be copied or run on it.
    """
    if isinstance(example, Tensor) and (example.ndim < 1 or example.shape[0] != 1):
        raise BadInputError(f"trace: example of shape {tuple(example.shape)} must hold one sample: (1, …)")
    batch = as_batch(example)
    if batch.size != 1:
        raise BadInputError(f"trace: an example of {batch.size} samples, must hold one")
    twin = _twin(model)
    slots = Slots(dict(_tensors(twin)))
    flow = Flow(slots, RULES, unlisted)
    try:
        observation = observe(twin, batch, flow)
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()}
        shape = next(iter(shapes.values())) if len(shapes) == 1 else shapes
        raise BadInputError(
            f"the model does not run on an example of shape {shape}: {described(error)}; check model.input_shape"
        ) from error
    training = _training_batch(twin, batch, flow, observation)
    grids = flow.grids()
    settle(slots, grids, flow.crossings)
    assembled = Assembler(twin, observation, slots, (grids, flow.cuts())).trace()
    return verified(twin, assembled, batch, training) if verify else assembled


def _training_batch(twin: nn.Module, batch: Batch, flow: Flow, observation: Observation) -> Batch | None:
    """Follow what runs in training only (auxiliary heads); return the two samples for it, None where nothing does."""
    unused = {skipped.name for skipped in observation.skipped if skipped.reason == UNUSED}
    if not unused:
        return None
    pair = batch.map(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor)
    try:
        used_before = set(flow.uses)
        observe(twin.train(), pair, flow)
    except Exception as error:
        observation.skipped.append(
            Skipped(type(twin).__name__, f"does not run in training mode on its example: {described(error)}")
        )
        return None
    finally:
        twin.eval()
    reached = {name for name, tensor in twin.named_parameters() if id(tensor) in set(flow.uses) - used_before}
    for i, skipped in enumerate(observation.skipped):
        if skipped.reason == UNUSED and skipped.name in reached:
            reason = "runs in training only: cut where it reads channels that are removed"
            observation.skipped[i] = Skipped(skipped.name, reason)
    return pair if reached & unused else None


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode."""
    try:
        twin = duplicate(model).eval()
    except Exception as error:
        raise BadInputError(
            f"{type(model).__name__} cannot be deep-copied ({described(error)}); make it copyable"
        ) from error
    for module in twin.modules():
        free_heads(module)
    return twin


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and buffers; a tensor that two modules share comes under both names."""
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_floating_point():
                yield f"{path}.{name}".lstrip("."), tensor


def verified(model: nn.Module, trace: Trace, batch: Batch, training: Batch | None = None) -> Trace:
    """Return the trace without the groups whose removal differs from their masking, or changes an output's shape.

    ``training``: samples on which the smaller network must run in training mode too.
    """
    if not trace.network.groups:
        return trace
    check = _Check(_lively(model), trace, batch, training)
    check.add([group.name for group in trace.network.groups])
    return check.trace.without(check.lost)


class _Check:
    """Groups that pass together, and those that were lost, with the reason."""

    def __init__(self, model: nn.Module, trace: Trace, batch: Batch, training: Batch | None) -> None:
        self.model, self.trace, self.batch, self.training = model, trace, batch, training
        rng = np.random.default_rng(_SEED)
        self.draws = [{name: _half(units, rng) for name, units in trace.units.items()} for _ in range(_DRAWS)]
        self.accepted: list[str] = []
        self.lost: dict[str, str] = {}

    def add(self, names: Sequence[str]) -> None:
        """Accept these groups if they pass on top of those accepted; else try halves of them."""
        why = self._difference([*self.accepted, *names])
        if not why:
            self.accepted += names
        elif len(names) > 1:
            middle = len(names) // 2
            self.add(names[:middle])
            self.add(names[middle:])
        elif not self._states_widths(names[0]):
            alone = self._difference(names) if self.accepted else why
            self.lost[names[0]] = alone or f"clashes with another group: {why}"

    def _states_widths(self, name: str) -> bool:
        """Accept a group if it passes once all integers of plain code that equal its width fall with it."""
        before = self.trace
        attributes = tuple(_stated(self.model, before, name))
        self.trace = replace(before, attributes=tuple(dict.fromkeys((*before.attributes, *attributes))))
        if not attributes or self._difference([*self.accepted, name]):
            self.trace = before
            return False
        self.accepted.append(name)
        return True

    def _difference(self, names: Sequence[str]) -> str:
        for draw in self.draws:
            kept = {name: draw[name] for name in names}
            if why := _difference(self.model, self.trace, kept, (self.batch, self.training)):
                return why
        return ""


def _stated(model: nn.Module, trace: Trace, name: str) -> Iterator[WidthAttribute]:
    """Yield integers of modules of no known type that equal the width of a group."""
    group = next(group for group in trace.network.groups if group.name == name)
    coupling = next(coupling for coupling in group.couplings if coupling.side is Side.OUT)
    width = group.channels * coupling.factor // coupling.removed
    for path, module in model.named_modules():
        if layer_type(module) is not None or isinstance(module, nn.RNNBase):
            continue
        for attribute, value in vars(module).items():
            if type(value) is int and value == width and not attribute.startswith("_"):
                yield WidthAttribute(path, attribute, name, width * group.unit // group.channels, group.unit)


def _half(units: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Keep a random half of the units, rounded up: never none, never all (groups have two or more)."""
    n_keep = (len(units) + 1) // 2
    return np.sort(units[rng.permutation(len(units))[:n_keep]].ravel())


def _lively(model: nn.Module) -> nn.Module:
    """Copy the model with its vectors drawn afresh, in eval mode."""
    twin = duplicate(model).eval()
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if tensor.is_floating_point() and (tensor.numel() == max(tensor.shape, default=1) or not tensor.any()):
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                centred = name.endswith(("bias", "running_mean")) or tensor.ndim > 1
                tensor.copy_(noise - 0.5 if centred else noise + 0.5)
    return twin


def _difference(model: nn.Module, trace: Trace, kept: Kept, batches: tuple[Batch, Batch | None]) -> str:
    """Say how removing differs from masking; empty if it does not."""
    batch, training = batches
    with masked(model, trace, kept):
        dense = observe(model, batch)
    expected = _outputs(dense.output)
    try:
        small = remove(model, trace, kept)
        observation = observe(small, batch)
        if training is not None:
            with torch.no_grad():
                training.through(small.train())
    except Exception as error:
        return f"the smaller network does not run: {' '.join(str(error).split())[:120]}"
    outputs = _outputs(observation.output)
    if [(name, t.shape) for name, t in outputs] != [(name, t.shape) for name, t in expected]:
        return OUTPUT
    for (name, a), (_, b) in zip(expected, outputs, strict=True):
        scale, gap = (float(x.abs().max()) if x.numel() else 0.0 for x in (a, a - b))
        if not gap <= _TOLERANCE.get(a.dtype, 1e-4) * max(scale, 1e-6):
            where = f" in {name}" if name else ""
            return (
                f"removal differs from masking by {gap:.3g}{where} (outputs up to {scale:.3g}): not followed correctly"
            )
    return _unpredicted(trace.network, kept, dense.layers, observation.layers)


def _unpredicted(network: NetworkSpec, kept: Kept, dense: Sequence[LayerSpec], small: Sequence[LayerSpec]) -> str:
    """Say which layers of the smaller network have other shapes than the masked network's predict; empty if none.

    What the numbers of a sample decide (which expert takes which token) may make the layers others than the trace's.
    """
    routed = [x.name for x in dense] != [x.name for x in network.layers]
    network = network if routed else NetworkSpec(tuple(dense), network.groups)
    policy = PruningPolicy({**network.dense, **{name: len(index) for name, index in kept.items()}})
    predicted = network.with_channels(policy).layers
    if routed:
        widths = {x.name: (x.in_channels, x.out_channels) for x in small}
        wrong = [
            x.name for x in predicted if widths.get(x.name, widths) not in (widths, (x.in_channels, x.out_channels))
        ]
    else:
        wrong = [a.name for a, b in zip(predicted, small, strict=False) if _shape(a) != _shape(b)]
    if wrong or (len(predicted) != len(small) and not routed):
        return f"the shapes of {wrong[:3] or 'its layers'} after removal are not as predicted"
    return ""


def _shape(layer: LayerSpec) -> LayerSpec:
    """The layer without its name (of a slice: its first row) and without the operations that follow it."""
    return replace(layer, name="", steps=())


def _outputs(output: object) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in tensors_of_tree(output) if tensor.is_floating_point()]
