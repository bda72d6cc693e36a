"""Check groups by experiment: the removed module must compute what the masked module computes."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import PruningPolicy
from amcsearch.graph.masks import masked
from amcsearch.graph.observe import observe
from amcsearch.graph.outputs import output_tensors
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Trace

__all__ = ["verified"]

_TOLERANCE = 1e-4  # of the largest output, float32; structural mistakes are of order 1
_SEED = 0


def verified(model: nn.Module, trace: Trace, example: Tensor) -> Trace:
    """Return the trace without the groups whose removal differs from their masking, or changes the output's shape.

    Each group is checked alone with a random half of its units; then all together, and if that fails one by one
    on top of those already accepted. The model's vectors (norms, biases, layer scales) are drawn afresh in a
    copy, so that no error hides behind a zero.
    """
    twin, rng = _lively(model), np.random.default_rng(_SEED)
    half = {name: _half(units, rng) for name, units in trace.units.items()}
    lost = {name: why for name in half if (why := _difference(twin, trace, {name: half[name]}, example))}
    rest = {name: kept for name, kept in half.items() if name not in lost}
    if rest and _difference(twin, trace, rest, example):
        accepted: dict[str, NDArray[np.int64]] = {}
        for name, kept in rest.items():
            why = _difference(twin, trace, {**accepted, name: kept}, example)
            if why:
                lost[name] = f"clashes with another group: {why}"
            else:
                accepted[name] = kept
    return trace.without(lost) if lost else trace


def _half(units: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Keep a random half of the units, rounded up: never none, never all (groups have two or more)."""
    n_keep = (len(units) + 1) // 2
    return np.sort(units[rng.permutation(len(units))[:n_keep]].ravel())


def _lively(model: nn.Module) -> nn.Module:
    """Copy the model with its vectors drawn afresh, in eval mode."""
    twin = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if tensor.is_floating_point() and (tensor.numel() == max(tensor.shape, default=1) or not tensor.any()):
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                centred = name.endswith(("bias", "running_mean")) or tensor.ndim > 1
                tensor.copy_(noise - 0.5 if centred else noise + 0.5)
    return twin


def _difference(model: nn.Module, trace: Trace, kept: dict[str, NDArray[np.int64]], example: Tensor) -> str:
    """Say how removing differs from masking; empty if it does not."""
    with torch.no_grad():
        with masked(model, trace, kept):
            expected = list(output_tensors(model(example)))
        small = remove(model, trace, kept)
        try:
            found = list(output_tensors(small(example)))
        except Exception as error:
            return f"the smaller network does not run: {' '.join(str(error).split())[:120]}"
    if [t.shape for t in found] != [t.shape for t in expected]:
        return "part of the network's output, which is never pruned"
    scale = max(float(t.abs().max()) for t in expected)
    gap = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    if not gap <= _TOLERANCE * max(scale, 1e-6):
        return f"removal differs from masking by {gap:.3g} (outputs up to {scale:.3g}): not followed correctly"
    return _unpredicted(trace, kept, small, example)


def _unpredicted(trace: Trace, kept: dict[str, NDArray[np.int64]], small: nn.Module, example: Tensor) -> str:
    """Say which layer of the smaller module has other shapes than the network predicts; empty if none."""
    policy = PruningPolicy({**trace.network.dense, **{name: len(index) for name, index in kept.items()}})
    expected = trace.network.with_channels(policy).layers
    found = observe(small, example).layers
    wrong = [a.name for a, b in zip(expected, found, strict=False) if a != b]
    if wrong or len(expected) != len(found):
        return f"the shapes of {wrong[:3] or 'its layers'} after removal are not as predicted"
    return ""
