"""Attention heads: which projections feed one softmax(QKᵀ)V, and which attributes count its heads.

Only whole heads are removed. Head h owns rows [h·d, (h+1)·d) of the query, key and value projections and the same
columns of the output projection (d = head width). Projections are identified by when they run, not by
their names. The query, key and value projections run before the product, inside the module that has the head count:
three of one width, or one fused projection of three times the width. The output projection is the first linear layer of
that width after the product.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.graph.tracing.recorder import AttentionCall, Observation

__all__ = ["HEAD_COUNTS", "HEAD_WIDTHS", "HeadTable", "find_heads"]

HEAD_COUNTS = (
    "num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "num_head", "heads", "num_key_value_heads",
)  # fmt: skip
HEAD_WIDTHS = (
    "all_head_size",
    "inner_dim",
    "inner_size",
    "attention_dim",
    "attn_dim",
    "attention_width",
    "inner_width",
)


@dataclass(frozen=True)
class HeadTable:
    """One attention: ``inputs`` are (layer, offset) of the query, key and value rows, ``output`` reads the heads.

    ``counts`` and ``widths`` are (module, attribute) that state the number of heads and heads x head width.
    """

    call: AttentionCall
    inputs: tuple[tuple[str, int], ...]
    output: str
    counts: tuple[tuple[str, str], ...]
    widths: tuple[tuple[str, str], ...]


def find_heads(model: nn.Module, observation: Observation) -> tuple[list[HeadTable], dict[str, str]]:
    """Return the head tables, and for each attention that cannot be followed its layer and the reason."""
    tables, lost = [], {}
    for call in observation.attentions:
        projections = _projections(observation, call)
        if isinstance(projections, str):
            lost[call.layer] = projections
            continue
        inputs, output, owner = projections
        total = call.heads * call.head_width
        counts, widths = [], []
        for path in _path(owner, call.module):
            values = vars(model.get_submodule(path))
            counts += [(path, a) for a in HEAD_COUNTS if _equals(values.get(a), call.heads)]
            widths += [(path, a) for a in HEAD_WIDTHS if _equals(values.get(a), total)]
        tables.append(HeadTable(call, inputs, output, tuple(counts), tuple(widths)))
    return tables, lost


def _equals(value: object, number: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == number


def _path(owner: str, inner: str) -> list[str]:
    """Modules from the owner of the projections down to the one that runs the product."""
    parts = inner.split(".") if inner else []
    start = len(owner.split(".")) if owner else 0
    return [".".join(parts[:i]) for i in range(start, len(parts) + 1)]


def _projections(observation: Observation, call: AttentionCall) -> tuple[tuple[tuple[str, int], ...], str, str] | str:
    total = call.heads * call.head_width
    after = [x for x in observation.layers[call.position + 1 :] if x.kind is LayerKind.LINEAR]
    output = next((x.name for x in after if x.in_channels == total), None)
    parts = call.module.split(".") if call.module else []
    for depth in range(len(parts), -1, -1):
        owner = ".".join(parts[:depth])
        inside = _linears_before(observation, call, owner)
        three, fused = (
            [x for x in inside if x.out_channels == total],
            [x for x in inside if x.out_channels == 3 * total],
        )
        if output is None and (three or fused):
            return f"no linear layer of {total} inputs reads its {call.heads} heads"
        if len(three) >= 3:
            return tuple((x.name, 0) for x in three[-3:]), str(output), owner
        if fused:
            return tuple((fused[-1].name, i * total) for i in range(3)), str(output), owner
        if inside:
            shapes: Mapping[str, int] = {x.name: x.out_channels for x in inside[-3:]}
            return (
                f"needs query, key and value of {total} channels each (grouped or shared heads?), found {dict(shapes)}"
            )
    return "its query, key and value come from no linear layer"


def _linears_before(observation: Observation, call: AttentionCall, owner: str) -> list[LayerSpec]:
    prefix = f"{owner}." if owner else ""
    earlier = observation.layers[: call.position]
    last = max((i for i, x in enumerate(earlier) if x.kind is LayerKind.ATTENTION), default=-1)
    return [
        x for x in earlier[last + 1 :] if x.kind is LayerKind.LINEAR and observation.modules[x.name].startswith(prefix)
    ]
