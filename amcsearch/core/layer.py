"""Layers as shapes: all that a cost may depend on."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from amcsearch.core.errors import BadInputError

__all__ = ["LayerKind", "LayerSpec", "MapOp", "MapStep", "Stored"]

_Widths = TypeVar("_Widths", int, NDArray[np.int64])


class LayerKind(StrEnum):
    """What a layer computes; every cost keeps one small function for each kind."""

    CONV = "conv"
    LINEAR = "linear"
    BATCH_NORM = "batch_norm"
    LAYER_NORM = "layer_norm"
    GROUP_NORM = "group_norm"
    EMBEDDING = "embedding"
    ATTENTION = "attention"
    PARAMETER = "parameter"


class Stored(StrEnum):
    """What the delivered file stores of a layer's weights.

    - ``all``: its parameters; of a batch norm also its running statistics;
    - ``bias``: a batch norm that is folded into the convolution before it, which has its bias from it;
    - ``nothing``: a batch norm that is folded into a convolution with a bias, or a parameter that the example never
      used, as those of a head for training only;
    - ``copy``: a linear layer that shares the weight of an embedding, of which the file has a transposed copy;
    - ``elsewhere``: of a product with a matrix for each expert, since their tensor is a layer of its own. No expert
      leaves: each becomes thinner.
    """

    ALL = "all"
    BIAS = "bias"
    NOTHING = "nothing"
    COPY = "copy"
    ELSEWHERE = "elsewhere"


class MapOp(StrEnum):
    """What an operation without weights does, as far as runtimes fuse it differently."""

    ADD = "add"
    ACTIVATION = "activation"
    POOL = "pool"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class MapStep:
    """An operation without weights on what a layer wrote; sizes are positions a channel of that layer.

    ``reads``: the map that the layer, or the step before, wrote, then what is read beside it (a shortcut's map);
    ``writes``: the result.
    """

    op: MapOp
    reads: tuple[int, ...]
    writes: int


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Shapes of one layer for one sample (batch size 1).

    Spatial sizes are (height, width); a sequence of T tokens is (T, 1), a volume (depth x height, width), and pieces of
    a sample that run together (windows, frames) lie under each other.

    - conv, linear: ``in_channels`` → ``out_channels``; ``in_size`` → ``out_size``. Without a weight: a product of two
      maps, of ``conv_groups`` independent ones.
    - batch_norm, layer_norm, group_norm: ``in_channels == out_channels``. Of a layer norm over channels and positions
      (C, H, W), ``kernel`` is (H, W): each of these positions has a weight of its own for every channel.
    - embedding: ``in_channels`` rows of ``out_channels`` features.
    - attention: softmax(QKᵀ)V; ``in_channels`` = heads x width of a key, ``out_channels`` = heads x width of a value;
      ``conv_groups`` is the number of heads, ``in_size`` the keys that each query meets, ``out_size`` the queries.
    - parameter: a tensor outside any layer, ``in_channels`` rows of ``out_channels`` (a class token: one row).

    ``has_weight`` is false where the weight is absent or already counted under another name
    (tied embeddings, a module called twice).

    ``steps`` are the operations without weights that follow the layer, in order; only energy counts them.

    ``stored`` says what the delivered file holds of it; only the bytes of the file count that.

    Raises:
        BadInputError: a count below one, or ``conv_groups`` that does not divide the channels.
    """

    name: str
    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    conv_groups: int = 1
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    has_weight: bool = True
    has_bias: bool = False
    steps: tuple[MapStep, ...] = ()
    stored: Stored = Stored.ALL

    def __post_init__(self) -> None:
        for field in ("in_channels", "out_channels", "conv_groups"):
            if getattr(self, field) < 1:
                raise BadInputError(f"layer {self.name!r}: {field} = {getattr(self, field)}, must be at least 1")
        for field in ("in_channels", "out_channels"):
            if self.kind is not LayerKind.EMBEDDING and getattr(self, field) % self.conv_groups:
                raise BadInputError(
                    f"layer {self.name!r}: {field} = {getattr(self, field)} "
                    f"is not a multiple of conv_groups = {self.conv_groups}"
                )

    @property
    def is_depthwise(self) -> bool:
        """Each input channel has filters of its own."""
        return self.kind is LayerKind.CONV and self.conv_groups > 1 and self.conv_groups == self.in_channels

    @property
    def is_product(self) -> bool:
        """A product of several pairs of maps, one a group (the queries and keys of each head)."""
        return self.conv_groups > 1 and self.may_be_product

    @property
    def may_be_product(self) -> bool:
        """Whether it has the shapes of a product of pairs of maps, or of what is left of one that has a single group.

        A convolution without a bias that is called a second time looks like the latter.
        """
        plain = self.kernel == (1, 1) and not self.has_weight and not self.has_bias
        plain &= self.stored is not Stored.ELSEWHERE
        return self.kind is LayerKind.CONV and plain

    def groups_at(self, in_channels: _Widths, out_channels: _Widths) -> _Widths:
        """Return ``conv_groups`` at other widths, integers or arrays of them.

        Depthwise convolutions, norms of single channels and attention lose whole groups (filters, heads). A product of
        maps loses whole groups as far as both sides shrink alike. Any other grouped layer keeps its groups and each
        becomes thinner, and so does attention where the width is not one of whole heads.
        """
        kept, base = in_channels, self.in_channels
        if self.is_product:
            kept, base = np.maximum(in_channels * self.out_channels, out_channels * base), base * self.out_channels
        elif not (self.is_depthwise or self.kind is LayerKind.ATTENTION or self._is_instance_norm):
            return 0 * in_channels + self.conv_groups
        is_part = self.conv_groups * kept % base != 0
        groups: _Widths = (self.conv_groups * kept // base) * (1 - is_part) + self.conv_groups * is_part
        return groups

    @property
    def _is_instance_norm(self) -> bool:
        return self.kind is LayerKind.GROUP_NORM and self.conv_groups == self.in_channels

    def resized(self, in_channels: int, out_channels: int) -> "LayerSpec":
        """Return the layer with other widths, and as many groups as ``groups_at`` says."""
        conv_groups = int(self.groups_at(in_channels, out_channels))
        return replace(self, in_channels=in_channels, out_channels=out_channels, conv_groups=conv_groups)

    def bias_alone(self) -> "LayerSpec | None":
        """Return what is left of the layer where it reads no channels: its bias, a parameter; None without a bias."""
        if not self.has_bias:
            return None
        return LayerSpec(f"{self.name}.bias" if self.name else "", LayerKind.PARAMETER, 1, self.out_channels)
