"""Tracing: from a module and an example to shapes and channel groups, through Torch-Pruning's dependency graph.

Torch-Pruning (Fang et al. 2023, DepGraph, arXiv 2301.12900) follows autograd and says which index of which layer
meets which. We take only those ties from it, and build groups, units and slices ourselves. Torch-Pruning treats any
unknown operation as element-wise, so every group is then checked by experiment: the module after removal must compute
what the masked module computes.

Torch-Pruning's own walk rebuilds every index map on each call, keeps one origin where an index has two, and may not
end where slices feed each other (rotary embeddings). ``walk`` visits each (index, origin) pair once and is bounded.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, PruningPolicy, Side, described
from amcsearch.graph.masks import masked
from amcsearch.graph.outputs import output_tensors
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Kept, NormSlice, Skipped, TensorSlice, Trace, WidthAttribute
from amcsearch.graph.tracing.assemble import assemble
from amcsearch.graph.tracing.attention import find_heads
from amcsearch.graph.tracing.coupling import SlotTable, module_of, slot_table, tie_heads
from amcsearch.graph.tracing.layer_types import CUSTOM_NORM, layer_type
from amcsearch.graph.tracing.recorder import Observation, is_unknown, loose_dim, observe

__all__ = [
    "Index",
    "Kept",
    "NormSlice",
    "Skipped",
    "TensorSlice",
    "Trace",
    "WidthAttribute",
    "trace",
    "verified",
    "walk",
]

_TOLERANCE = 1e-4  # of the largest output, float32; structural mistakes are of order 1
_SEED = 0


def verified(model: nn.Module, trace: Trace, example: Tensor) -> Trace:
    """Return the trace without the groups whose removal differs from their masking, or changes the output's shape.

    Each group is checked alone with a random half of its units; then all together, and if that fails one by one
    on top of those already accepted. The model's vectors (norms, biases, layer scales) are drawn at random in
    a copy, because a vector of zeros would make a wrong removal look right.
    """
    twin, rng = _lively(model), np.random.default_rng(_SEED)
    half = {name: _half(units, rng) for name, units in trace.units.items()}
    lost = {name: why for name in half if (why := _difference(twin, trace, {name: half[name]}, example))}
    passing = {name: kept for name, kept in half.items() if name not in lost}
    if passing and _difference(twin, trace, passing, example):
        accepted: dict[str, NDArray[np.int64]] = {}
        for name, kept in passing.items():
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
            outputs = list(output_tensors(small(example)))
        except Exception as error:
            model(example)  # a network that does not run any more at all says so itself
            return f"the smaller network does not run: {' '.join(str(error).split())[:120]}"
    if [t.shape for t in outputs] != [t.shape for t in expected]:
        return "part of the network's output, which is never pruned"
    scale = max(float(t.abs().max()) for t in expected)
    gap = max(float((a - b).abs().max()) for a, b in zip(expected, outputs, strict=True))
    if not gap <= _TOLERANCE * max(scale, 1e-6):
        return f"removal differs from masking by {gap:.3g} (outputs up to {scale:.3g}): not followed correctly"
    return _unpredicted(trace, kept, small, example)


def _unpredicted(trace: Trace, kept: dict[str, NDArray[np.int64]], small: nn.Module, example: Tensor) -> str:
    """Say which layer of the smaller module has other shapes than the network predicts; empty if none."""
    policy = PruningPolicy({**trace.network.dense, **{name: len(index) for name, index in kept.items()}})
    expected = trace.network.with_channels(policy).layers
    layers = observe(small, example).layers
    wrong = [a.name for a, b in zip(expected, layers, strict=False) if a != b]
    if wrong or len(expected) != len(layers):
        return f"the shapes of {wrong[:3] or 'its layers'} after removal are not as predicted"
    return ""


_MIXED = 4  # pairs per channel at one node beyond which channels are held to be mixed

Handler = Callable[..., Any]


class Index(NamedTuple):
    """A channel ``idx`` of some node that moves with channel ``root_idx`` of the layer the walk began at."""

    idx: int
    root_idx: int


def walk(node: Any, handler: Handler, width: int, limit: int) -> tuple[dict[tuple[Any, Handler], set[Index]], set[int]]:
    """Return every (node, handler) reached with its index pairs, and the origins whose indices made no sense.

    Args:
        node: graph node of the layer the walk begins at; has ``dependencies`` with ``target``, ``handler``,
            ``index_mapping`` and ``is_triggered_by``.
        handler: what prunes its output channels.
        width: its output channels.
        limit: the widest layer of the network: indices beyond it are strays.
    """
    reached: dict[tuple[Any, Handler], set[Index]] = defaultdict(set)
    strays: set[int] = set()
    stack = [(node, handler, [Index(i, i) for i in range(width)])]
    while stack:
        node, handler, pairs = stack.pop()
        here = reached[node, handler]
        fresh = [pair for pair in dict.fromkeys(pairs) if pair not in here]
        lost = {p.root_idx for p in fresh if p.root_idx is not None and not 0 <= p.idx < limit}
        if len(here) + len(fresh) > _MIXED * limit or any(p.root_idx is None for p in fresh):
            lost = set(range(width))
        strays |= lost
        fresh = [pair for pair in fresh if pair.root_idx not in lost and pair.root_idx is not None]
        here.update(fresh)
        if not fresh:
            continue
        for edge in node.dependencies:
            if edge.is_triggered_by(handler):
                mapped: Any = fresh
                for mapping in edge.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                stack.append((edge.target, edge.handler, [Index(p.idx, p.root_idx) for p in mapped]))
    return dict(reached), strays


_ROOTS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)


def trace(model: nn.Module, example: Tensor, *, verify: bool = True) -> Trace:
    """Return the shapes, channel groups and tensor slices of any torch module.

    Args:
        model: left untouched (mode, gradients, hooks): a copy is traced in eval mode.
        example: one sample with batch dimension (1, …): float images or int64 tokens.
        verify: mask half of each group, remove it, and compare the outputs; a group that differs, or that changes
            the shape of the network's output, is moved to ``skipped`` with the reason.

    Raises:
        BadInputError: the example has another batch size, or the model cannot be copied or run on it.
    """
    if example.ndim < 1 or example.shape[0] != 1:
        raise BadInputError(f"trace: example of shape {tuple(example.shape)} must hold one sample: (1, …)")
    twin = _twin(model)
    try:
        observation = observe(twin, example)
    except Exception as error:
        raise BadInputError(
            f"the model does not run on an example of shape {tuple(example.shape)}: {described(error)}; "
            "check model.input_shape"
        ) from error
    heads, lost_heads = find_heads(twin, observation)
    skipped = [*observation.skipped, *(Skipped(layer, reason) for layer, reason in lost_heads.items())]
    table = slot_table(twin, observation, skipped)
    internal = tie_heads(table, heads, lost_heads, observation)
    try:
        _follow(twin, example, observation, table, internal)
    except Exception as error:
        unknown = sorted({type(m).__name__ for m in twin.modules() if is_unknown(m)})
        reason = (
            f"no group is offered: Torch-Pruning cannot trace it ({_line(error)}); layers of unknown type: {unknown}"
        )
        return assemble(twin, observation, heads, [], [*skipped, Skipped(type(model).__name__, reason)])
    groups = table.groups(_producers(twin, observation))
    assembled = assemble(twin, observation, heads, groups, skipped)
    return verified(twin, assembled, example) if verify else assembled


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose floating-point parameters all require gradients."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise BadInputError(
            f"{type(model).__name__} cannot be deep-copied ({described(error)}); make it copyable"
        ) from error
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin.eval()


def _producers(model: nn.Module, observation: Observation) -> Iterable[str]:
    return [name for name in observation.modules if isinstance(module_of(model, observation, name), _ROOTS)]


def _follow(model: nn.Module, example: Tensor, observation: Observation, table: SlotTable, internal: set[str]) -> None:
    """Join the slots that Torch-Pruning couples, from every layer that writes channels."""
    graph = _graph(model, example)
    layer_of: dict[object, str] = {}
    parameters = dict(model.named_parameters())
    for name, path in observation.modules.items():
        target = module_of(model, observation, name) or parameters.get(path)
        if target is not None and "#" not in name:
            layer_of[target] = name
            if layer_type(target) is CUSTOM_NORM or isinstance(target, nn.RMSNorm):  # seen as loose parameters
                layer_of.update(dict.fromkeys(_vectors(target), name))
    names = {id(module): f"{path} ({type(module).__name__})" for path, module in model.named_modules()}
    names |= {id(parameter): f"the parameter {path}" for path, parameter in parameters.items()}
    done: set[int] = set()
    for name in _producers(model, observation):
        if "#" in name or name in internal or done.issuperset(table.slots(name, Side.OUT)):
            continue
        module = model.get_submodule(observation.modules[name])
        if module in graph.module2node:
            _join(graph, module, name, table, layer_of, names, done)


def _vectors(module: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [module] if isinstance(module, nn.Parameter) else list(module.parameters(recurse=False))


def _graph(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    loose = [(p, loose_dim(p)) for p in _loose(model)]
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        return tp.DependencyGraph().build_dependency(
            model,
            example,
            forward_fn=lambda module, x: module(x),
            output_transform=lambda out: [t for t in output_tensors(out) if t.grad_fn is not None],
            unwrapped_parameters=[tp._helpers.UnwrappedParameters(p, dim) for p, dim in loose],
            verbose=False,
        )


def _loose(model: nn.Module) -> list[nn.Parameter]:
    """Parameters outside the layers that Torch-Pruning knows."""
    known = tuple(k for k in (tp.ops.TORCH_CONV, tp.ops.TORCH_BATCHNORM, tp.ops.TORCH_PRELU, tp.ops.TORCH_LINEAR,
        tp.ops.TORCH_LAYERNORM, tp.ops.TORCH_EMBED, tp.ops.TORCH_MHA, tp.ops.TORCH_LSTM, tp.ops.TORCH_GROUPNORM,
        tp.ops.TORCH_INSTANCENORM))  # fmt: skip
    inside = {id(p) for m in model.modules() if isinstance(m, known) for p in m.parameters()}
    return [p for p in model.parameters() if id(p) not in inside and p.numel() > 1]


def _join(
    graph: tp.DependencyGraph,
    module: nn.Module,
    name: str,
    table: SlotTable,
    layer_of: dict[object, str],
    names: dict[int, str],
    done: set[int],
) -> None:
    """Join every slot that moves with an output channel of ``module``."""
    root = table.slots(name, Side.OUT)
    done.update(root)
    limit = max(table.width.values())
    reached, strays = walk(
        graph.module2node[module], graph.get_pruner_of_module(module).prune_out_channels, len(root), limit
    )
    table.block((root[r] for r in strays), f"{name}: an operation mixes its channels in a way that cannot be followed")
    for (node, handler), pairs in reached.items():
        target = node.module
        layer = layer_of.get(target)
        if layer is None:
            if isinstance(target, nn.Parameter) or not type(target).__module__.startswith("torch_pruning"):
                table.block((root[r] for _, r in pairs), f"reaches {names[id(target)]}, which cannot be followed")
            continue
        side = Side.OUT if graph.is_out_channel_pruning_fn(handler) else Side.IN
        width = table.width[table.key(layer, side)]
        for index, r in pairs:
            if index >= width:
                table.block([root[r]], f"its channels do not line up with those of {layer}")
                continue
            slot = table.slot(layer, side, index)
            table.data.join(root[r], slot)
            done.add(slot)
