"""From a module and an example to shapes and channel groups, through Torch-Pruning's dependency graph.

Torch-Pruning (Fang et al. 2023, DepGraph, arXiv 2301.12900) follows autograd and says which index of which layer
meets which. We take only those ties from it, and build groups, units and slices ourselves: it treats any unknown
operation as element-wise, so every group is then checked by comparing masked with removed outputs.
"""

import copy
import warnings
from collections.abc import Iterable

import torch
import torch_pruning as tp
from torch import Tensor, nn

from amcsearch.core import BadInputError, Side
from amcsearch.graph.assemble import assemble
from amcsearch.graph.attention import find_heads
from amcsearch.graph.coupling import SlotTable
from amcsearch.graph.layer_types import CUSTOM_NORM, layer_type
from amcsearch.graph.observe import Observation, is_unknown, loose_dim, observe
from amcsearch.graph.outputs import output_tensors
from amcsearch.graph.slices import Kept, NormSlice, Skipped, TensorSlice, Trace, WidthAttribute
from amcsearch.graph.ties import module_of, slot_table, tie_heads
from amcsearch.graph.verify import verified
from amcsearch.graph.walk import walk

__all__ = ["Kept", "NormSlice", "Skipped", "TensorSlice", "Trace", "WidthAttribute", "trace"]

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
        seen = observe(twin, example)
    except Exception as error:
        raise BadInputError(
            f"the model does not run on an example of shape {tuple(example.shape)}: {_line(error)}; "
            "check model.input_shape"
        ) from error
    heads, lost_heads = find_heads(twin, seen)
    skipped = [*seen.skipped, *(Skipped(layer, reason) for layer, reason in lost_heads.items())]
    table = slot_table(twin, seen, skipped)
    internal = tie_heads(table, heads, lost_heads, seen)
    try:
        _follow(twin, example, seen, table, internal)
    except Exception as error:
        unknown = sorted({type(m).__name__ for m in twin.modules() if is_unknown(m)})
        reason = (
            f"no group is offered: Torch-Pruning cannot trace it ({_line(error)}); layers of unknown type: {unknown}"
        )
        return assemble(twin, seen, heads, [], [*skipped, Skipped(type(model).__name__, reason)])
    groups = table.groups(_producers(twin, seen))
    found = assemble(twin, seen, heads, groups, skipped)
    return verified(twin, found, example) if verify else found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose floating-point parameters all require gradients."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise BadInputError(
            f"{type(model).__name__} cannot be deep-copied ({_line(error)}); make it copyable"
        ) from error
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin.eval()


def _producers(model: nn.Module, seen: Observation) -> Iterable[str]:
    return [name for name in seen.modules if isinstance(module_of(model, seen, name), _ROOTS)]


def _follow(model: nn.Module, example: Tensor, seen: Observation, table: SlotTable, internal: set[str]) -> None:
    """Join the slots that Torch-Pruning couples, from every layer that writes channels."""
    graph = _graph(model, example)
    layer_of: dict[object, str] = {}
    parameters = dict(model.named_parameters())
    for name, path in seen.modules.items():
        target = module_of(model, seen, name) or parameters.get(path)
        if target is not None and "#" not in name:
            layer_of[target] = name
            if layer_type(target) is CUSTOM_NORM or isinstance(target, nn.RMSNorm):  # seen as loose parameters
                layer_of.update(dict.fromkeys(_vectors(target), name))
    names = {id(module): f"{path} ({type(module).__name__})" for path, module in model.named_modules()}
    names |= {id(parameter): f"the parameter {path}" for path, parameter in parameters.items()}
    done: set[int] = set()
    for name in _producers(model, seen):
        if "#" in name or name in internal or done.issuperset(table.slots(name, Side.OUT)):
            continue
        module = model.get_submodule(seen.modules[name])
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
