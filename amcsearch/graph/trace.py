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

from amcsearch.core import BadInputError, LayerKind, Side
from amcsearch.graph.assemble import assemble
from amcsearch.graph.attention import HeadTable, find_heads
from amcsearch.graph.coupling import SlotTable
from amcsearch.graph.layer_types import CUSTOM_NORM, layer_type, unit_period
from amcsearch.graph.observe import Observation, is_unknown, loose_dim, observe
from amcsearch.graph.outputs import output_tensors
from amcsearch.graph.slices import Kept, NormSlice, Skipped, TensorSlice, Trace, WidthAttribute
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
    table = _slot_table(twin, seen, skipped)
    internal = _tie_heads(table, heads, lost_heads, seen)
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


def _slot_table(model: nn.Module, seen: Observation, skipped: list[Skipped]) -> SlotTable:
    """Number the channels of every layer, tie conv groups, and block what must be left alone."""
    specs = {x.name: x for x in seen.layers if "#" not in x.name}
    modules = {name: _module(model, seen, name) for name in specs}
    passes = [
        name
        for name, spec in specs.items()
        if spec.kind in (LayerKind.ATTENTION, LayerKind.PARAMETER)
        or (spec.is_depthwise and spec.in_channels == spec.out_channels)
        or ((kind := layer_type(modules[name] or nn.Identity())) is not None and kind.passes)
    ]  # fmt: skip
    table = SlotTable({name: (spec.in_channels, spec.out_channels) for name, spec in specs.items()}, passes)
    tied = _tied_tensors(model, {seen.modules[x.name] for x in seen.layers if x.kind is LayerKind.LINEAR})
    for name, module in modules.items():
        if module is None and specs[name].kind is LayerKind.LINEAR:
            table.block([*table.slots(name, Side.IN), *table.slots(name, Side.OUT)], f"{name} is used by plain code")
        if module is None:
            continue
        for side in Side:
            if period := unit_period(module, side):
                table.tie_units(name, side, [i % period for i in range(len(table.slots(name, side)))])
        if specs[name].is_depthwise and name not in table.passes:
            _tie_multiplier(table, name, specs[name].out_channels // specs[name].in_channels)
        if reason := _left_alone(module, seen.modules[name], tied, model):
            skipped.append(Skipped(name, reason))
            table.block([*table.slots(name, Side.IN), *table.slots(name, Side.OUT)], f"{name}: {reason}")
    return table


def _module(model: nn.Module, seen: Observation, layer: str) -> nn.Module | None:
    """The module of a layer; None where a layer is a product or a bare parameter."""
    try:
        module = model.get_submodule(seen.modules[layer])
    except AttributeError:
        return None
    return module if layer_type(module) is not None else None


def _tie_multiplier(table: SlotTable, layer: str, multiplier: int) -> None:
    """Depthwise convolution with m filters a channel: input c writes outputs c·m … c·m + m − 1."""
    for out in range(len(table.slots(layer, Side.OUT))):
        table.data.join(table.slot(layer, Side.IN, out // multiplier), table.slot(layer, Side.OUT, out))


def _tied_tensors(model: nn.Module, linears: set[str]) -> dict[int, list[str]]:
    """Parameters used in two places, by id: the names of their holders, and those that plain code multiplies with."""
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            uses = [name, f"F.linear(…, {name})"] if name in linears else [name]
            holders.setdefault(id(parameter), []).extend(uses)
    return {key: names for key, names in holders.items() if len(names) > 1}


def _left_alone(module: nn.Module, path: str, tied: dict[int, list[str]], model: nn.Module) -> str:
    """Why a layer's channels must not change; empty if they may."""
    for parameter in module.parameters(recurse=False):
        if id(parameter) in tied:
            return f"its weight is tied ({' = '.join(tied[id(parameter)])}) and left alone"
    if any(isinstance(m, nn.MultiheadAttention) and path in (f"{n}.out_proj",) for n, m in model.named_modules()):
        return "part of nn.MultiheadAttention"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return f"normalises over several dimensions {tuple(module.normalized_shape)}"
    for axis in layer_type(module).axes(module):  # type: ignore[union-attr]
        value = getattr(module, axis.tensor, None)
        if isinstance(value, Tensor) and axis.tensor not in {**module._parameters, **module._buffers}:
            return f"its {axis.tensor} is computed from other tensors (a parametrisation)"
    return ""


def _tie_heads(table: SlotTable, heads: list[HeadTable], lost: dict[str, str], seen: Observation) -> set[str]:
    """Tie query, key, value and output channels of every attention; return the layers whose outputs are inside one."""
    for head in heads:
        core, width = head.call.layer, head.call.head_width
        if "#" in core or any("#" in layer for layer in [head.output, *(x for x, _ in head.inputs)]):
            table.block(table.slots(core.split("#")[0], Side.OUT), f"{core}: its projections are called twice")
            continue
        for i, slot in enumerate(table.slots(core, Side.OUT)):
            for layer, offset in head.inputs:
                table.data.join(slot, table.slot(layer, Side.OUT, offset + i))
            table.data.join(slot, table.slot(head.output, Side.IN, i))
        table.tie_units(core, Side.OUT, [i // width for i in range(len(table.slots(core, Side.OUT)))])
    inside = {layer for head in heads for layer, _ in head.inputs}
    position = {call.layer: call.position for call in seen.attentions}
    for layer in lost:
        before = [x.name for x in seen.layers[: position[layer]] if x.kind is LayerKind.LINEAR and "#" not in x.name]
        for name in before[-3:]:
            table.block(table.slots(name, Side.OUT), f"feeds {layer}, whose heads cannot be followed")
            inside.add(name)
    return inside


def _producers(model: nn.Module, seen: Observation) -> Iterable[str]:
    return [name for name in seen.modules if isinstance(_module(model, seen, name), _ROOTS)]


def _follow(model: nn.Module, example: Tensor, seen: Observation, table: SlotTable, internal: set[str]) -> None:
    """Join the slots that Torch-Pruning couples, from every layer that writes channels."""
    graph = _graph(model, example)
    layer_of: dict[object, str] = {}
    parameters = dict(model.named_parameters())
    for name, path in seen.modules.items():
        target = _module(model, seen, name) or parameters.get(path)
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
