"""Ties that the layers themselves make: pass-through, conv groups, heads; and what must be left alone."""

from torch import Tensor, nn

from amcsearch.core import LayerKind, Side
from amcsearch.graph.attention import HeadTable
from amcsearch.graph.coupling import SlotTable
from amcsearch.graph.layer_types import layer_type, unit_period
from amcsearch.graph.observe import Observation
from amcsearch.graph.slices import Skipped

__all__ = ["module_of", "slot_table", "tie_heads"]


def slot_table(model: nn.Module, seen: Observation, skipped: list[Skipped]) -> SlotTable:
    """Number the channels of every layer, tie conv groups, and block what must be left alone."""
    specs = {x.name: x for x in seen.layers if "#" not in x.name}
    modules = {name: module_of(model, seen, name) for name in specs}
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


def module_of(model: nn.Module, seen: Observation, layer: str) -> nn.Module | None:
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


def tie_heads(table: SlotTable, heads: list[HeadTable], lost: dict[str, str], seen: Observation) -> set[str]:
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
