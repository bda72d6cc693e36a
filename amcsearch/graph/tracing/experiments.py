"""Experiments with one removal: does the smaller network compute what the masked one does, in the shapes predicted?"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, LayerKind, LayerSpec, NetworkSpec, PruningPolicy, Stored
from amcsearch.graph.batch import Batch, tensors_of_tree
from amcsearch.graph.masks import masked
from amcsearch.graph.removal import duplicate, remove
from amcsearch.graph.slices import Kept, Trace
from amcsearch.graph.tracing.branches import Decisions, OtherSide
from amcsearch.graph.tracing.grouping import OUTPUT
from amcsearch.graph.tracing.recorder import observe

__all__ = ["SEED", "FailedRunError", "Runs", "difference", "lively", "shares_of", "some_units"]

SEED: Final = 0
_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the largest output; structural mistakes are of order 1."""


@dataclass(frozen=True)
class Runs:
    """What a smaller network is checked on: one sample, also on other sides of its branches; in training mode others.

    ``training`` is None where nothing runs in training mode only.
    """

    batch: Batch
    training: Batch | None = None
    sides: tuple[OtherSide, ...] = ()


class FailedRunError(Exception):
    """The smaller network raised; ``__cause__`` says what."""

    def __init__(self, small: nn.Module) -> None:
        super().__init__()
        self.small = small


def some_units(units: NDArray[np.int64], rng: np.random.Generator, draw: int) -> NDArray[np.int64]:
    """Keep some of the units, never none, never all (groups have two or more).

    In the first draw a random share from a quarter to three quarters: were all groups halved, code that needs two of
    them to be equally wide would run. It is rounded as devices like it. In the second a half, rounded up. Not one unit
    of four or more: the products of a single head are recorded as those of no head.
    """
    count, counts = len(units), shares_of(len(units))
    n_keep = (count + 1) // 2 if draw else counts[int(rng.integers(0, len(counts)))]
    return np.sort(units[rng.permutation(count)[: min(n_keep, count - 1)]].ravel())


def shares_of(count: int) -> range:
    """How many of some units are kept: from a quarter to three quarters, in steps that devices like."""
    step = next(size for size in (8, 4, 2, 1) if count >= 4 * size or size == 1)
    least, most = max(-(-count // (4 * step)), 2 if count > 3 and step == 1 else 1), (count - count // 4) // step
    return range(step * least, step * max(least, most) + 1, step)


def lively(model: nn.Module) -> nn.Module:
    """Copy the model with its vectors drawn afresh, in eval mode."""
    twin = duplicate(model).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if tensor.is_floating_point() and (tensor.numel() == max(tensor.shape, default=1) or not tensor.any()):
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                centred = name.endswith(("bias", "running_mean")) or tensor.ndim > 1
                tensor.copy_(noise - 0.5 if centred else noise + 0.5)
    return twin


def difference(model: nn.Module, trace: Trace, kept: Kept, runs: Runs) -> str:
    """Say how removing differs from masking; empty if it does not.

    Raises:
        FailedRunError: the smaller network raised.
    """
    small = remove(model, trace, kept)
    try:
        observation = observe(small, runs.batch)
        on_sides = [_on_side(small, runs.batch, side) for side in runs.sides]
        if runs.training is not None:
            with torch.no_grad():
                runs.training.through(small.train())
    except Exception as error:
        raise FailedRunError(small) from error
    with masked(model, trace, kept):
        dense = observe(model, runs.batch)
        expected = [_on_side(model, runs.batch, side) for side in runs.sides]
        pair = _two_samples(model.eval(), runs.batch) if trace.sizes else None
    reason = _differ(dense.output, observation.output)
    reason = reason or ("" if pair is None else _differ(pair, _two_samples(small.eval(), runs.batch)))
    for side, output, wanted in zip(runs.sides, on_sides, expected, strict=True):
        where = _differ(wanted, output)
        reason = reason or (f"on the other side of the branch at {side.place} {where}" if where else "")
    return reason or _unpredicted(trace.network, kept, dense.layers, observation.layers)


def _two_samples(model: nn.Module, batch: Batch) -> object:
    """The output of two samples, whose code asks for other shapes than that of one; None where it does not run."""
    pair = batch.map(lambda x: torch.cat([x, x.flip(-1)]) if x.ndim > 1 and len(x) == 1 else x)
    with torch.no_grad(), suppress(Exception):
        return pair.through(model)
    return None


def _on_side(model: nn.Module, batch: Batch, side: OtherSide) -> object:
    """The output where a branch is taken on its other side."""
    with torch.no_grad(), Decisions(side):
        return batch.through(model)


def _differ(expected: object, output: object) -> str:
    """Say how the outputs of the smaller network differ from those expected."""
    wanted, outputs = _outputs(expected), _outputs(output)
    if [(n, t.shape) for n, t in outputs] != [(n, t.shape) for n, t in wanted]:
        return OUTPUT
    for (name, a), (_, b) in zip(wanted, outputs, strict=True):
        scale, gap = (float(x.abs().max()) if x.numel() else 0.0 for x in (a, a - b))
        if not gap <= _TOLERANCE.get(a.dtype, 1e-4) * max(scale, 1e-6):
            where = f" in {name}" if name else ""
            return (
                f"without its channels the output{where} is another than with zeros in them (by {gap:.3g}, outputs up "
                f"to {scale:.3g})"
            )
    return ""


def _unpredicted(network: NetworkSpec, kept: Kept, dense: Sequence[LayerSpec], small: Sequence[LayerSpec]) -> str:
    """Say which layers of the smaller network have other shapes than the masked network's predict; empty if none.

    What the numbers of a sample decide (which expert takes which token) may make the layers others than the trace's.
    """
    routed = [x.name for x in dense] != [x.name for x in network.layers]
    if not routed:
        layers = (replace(x, stored=known.stored) for x, known in zip(dense, network.layers, strict=True))
        network = NetworkSpec(tuple(layers), network.groups)
    policy = PruningPolicy({**network.dense, **{name: len(index) for name, index in kept.items()}})
    try:
        predicted = network.with_channels(policy).layers
    except BadInputError:  # a width below one: what groups lose of it is added up, where they are factors of it
        shared = _shared(network, kept)
        return f"its channels are factors of one width, that of {shared}, with those of another group: one can shrink"
    products, others = _apart(predicted)
    products_run, small = _apart(small)
    if products != products_run and not routed:
        return (
            f"the products of {sorted(set(products.items()) ^ set(products_run.items()))[0][0]!r} are not as predicted"
        )
    if routed:
        widths = {x.name: (x.in_channels, x.out_channels) for x in small}
        wrong = [x.name for x in others if widths.get(x.name, widths) not in (widths, (x.in_channels, x.out_channels))]
    else:
        wrong = [a.name for a, b in zip(others, small, strict=False) if _shape(a) != _shape(b)]
    if wrong or (len(others) != len(small) and not routed):
        return f"without its channels {', '.join(wrong[:3]) or 'its layers'} would have other shapes than expected"
    return ""


def _shared(network: NetworkSpec, kept: Kept) -> str:
    """A layer of which several of the kept groups shrink one side."""
    sides = Counter((c.layer, c.side) for group in network.groups if group.name in kept for c in group.couplings)
    return next((layer for (layer, _), count in sides.most_common(1) if count > 1), "a layer")


def _apart(layers: Sequence[LayerSpec]) -> tuple[Counter[str], list[LayerSpec]]:
    """Multiply-accumulates of products without a weight, by module, and the other layers.

    How such products are divided into layers depends on what is left: those of one head may be equal to others.
    """
    products, others = Counter[str](), []
    for layer in layers:
        module, _, name = layer.name.split("#")[0].rpartition(".")
        if name == "product" and not layer.has_weight:
            pairs = layer.in_channels * layer.out_channels // layer.conv_groups
            products[module] += pairs * layer.out_size[0] * layer.out_size[1]
        else:
            others.append(layer)
    return products, others


def _shape(layer: LayerSpec) -> LayerSpec:
    """The layer without its name (of a slice: its first row) and without the operations that follow it.

    The positions of a linear layer are one number: how they are laid out is a guess where plain code multiplies.

    Of a parameter only its size counts: where one channel is left, its dimension cannot be told. A norm inside each
    head runs at fewer positions once heads have left, and a batch norm of a constant at one.
    """
    if layer.kind in (LayerKind.LAYER_NORM, LayerKind.BATCH_NORM):
        layer = replace(layer, in_size=(1, 1), out_size=(1, 1))
    if layer.kind is LayerKind.PARAMETER:
        layer = replace(layer, in_channels=1, out_channels=layer.in_channels * layer.out_channels)
    if layer.kind is LayerKind.LINEAR:
        layer = replace(layer, in_size=(prod(layer.in_size), 1), out_size=(prod(layer.out_size), 1))
    return replace(layer, name="", steps=(), stored=Stored.ALL)


def _outputs(output: object) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in tensors_of_tree(output) if tensor.is_floating_point()]
