"""What a layer's latency depends on besides its widths."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec

__all__ = ["Signature", "by_signature", "keeps_signature", "nearest_known", "positions", "signature"]


@dataclass(frozen=True, slots=True)
class Signature:
    """Everything a layer's latency depends on but its widths.

    ``conv_groups`` is 0 where groups follow the widths (depthwise filters, attention heads); ``group_width`` then
    holds the channels a group keeps, and is 0 otherwise.
    """

    kind: LayerKind
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    has_bias: bool
    conv_groups: int
    group_width: int


def signature(layer: LayerSpec) -> Signature:
    """Signature of a layer: layers that share it differ in their widths alone."""
    follows = layer.is_depthwise or layer.kind is LayerKind.ATTENTION
    return Signature(
        layer.kind,
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.in_size,
        layer.out_size,
        layer.has_bias,
        0 if follows else layer.conv_groups,
        layer.in_channels // layer.conv_groups if follows else 0,
    )


def by_signature(layers: Iterable[LayerSpec]) -> list[tuple[LayerSpec, NDArray[np.int64], NDArray[np.int64]]]:
    """Layers of equal signatures together: the first of them, which of all they are, (L,), and their widths (L, 2).

    Products of maps are together where they are equal: of other widths, the first would have other groups than they.
    """
    groups: dict[Hashable, list[tuple[int, LayerSpec]]] = defaultdict(list)
    for number, layer in enumerate(layers):
        widths = (layer.in_channels, layer.out_channels) if layer.is_product else None
        groups[signature(layer), widths].append((number, layer))
    return [
        (
            group[0][1],
            np.array([number for number, _ in group], dtype=np.int64),
            np.array([(layer.in_channels, layer.out_channels) for _, layer in group], dtype=np.int64),
        )
        for group in groups.values()
    ]


def keeps_signature(layer: LayerSpec, widths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a layer resized to each of the widths (in, out), (L, 2), is one of its signature: (L,).

    Not so for widths that it cannot have, and for a single channel, where a depthwise convolution looks like another.
    """
    c_in, c_out = widths.T
    follows = layer.is_depthwise or layer.kind is LayerKind.ATTENTION
    groups = np.maximum(layer.conv_groups * c_in // layer.in_channels if follows else layer.conv_groups, 1)
    kept = (c_in > 0) & (c_out > 0)
    if layer.is_product:
        kept &= layer.groups_at(c_in, c_out) == groups
    if layer.kind is not LayerKind.EMBEDDING:
        kept &= (c_in % groups == 0) & (c_out % groups == 0)
    if layer.kind is LayerKind.CONV:
        kept &= ((groups > 1) & (groups == c_in)) == layer.is_depthwise
        kept &= (c_in > 1) | (c_out > 1)
    if follows:
        kept &= c_in // groups == layer.in_channels // layer.conv_groups
    return np.asarray(kept, dtype=np.bool_)


def positions(layer: LayerSpec | Signature) -> int:
    """Output positions of one sample; queries times keys for attention, whose work grows with both."""
    outputs = layer.out_size[0] * layer.out_size[1]
    return outputs * layer.in_size[0] * layer.in_size[1] if layer.kind is LayerKind.ATTENTION else outputs


def nearest_known(layer: LayerSpec, known: Collection[Signature]) -> Signature | None:
    """The signature whose kernels tell those of a layer: its own, or that of a sibling; None where there is neither.

    A sibling differs in map sizes and bias alone, and is the nearest in positions. That of a product of maps may differ
    in the number of its groups too, for heads leave it: one of its own number comes first, then the nearest number.
    """

    def sizeless(other: Signature) -> Signature:
        return replace(other, in_size=(1, 1), out_size=(1, 1), has_bias=False)

    def groupless(other: Signature) -> Signature:
        return replace(sizeless(other), conv_groups=0, group_width=0)

    def distance(other: Signature) -> tuple[float, float]:
        groups = max(other.conv_groups, 1) / max(wanted.conv_groups, 1)
        return abs(float(np.log(positions(other) / positions(wanted)))), abs(float(np.log(groups)))

    wanted = signature(layer)
    if wanted in known:
        return wanted
    alike = [other for other in known if sizeless(other) == sizeless(wanted)]
    if not alike and layer.may_be_product:
        alike = [other for other in known if not other.has_bias and groupless(other) == groupless(wanted)]
    return min(alike, key=distance, default=None)
