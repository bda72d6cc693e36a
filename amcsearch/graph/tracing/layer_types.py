"""Operator knowledge, one row a module type: shapes, the tensor axes that hold channels, attributes that state them.

A row is a ``LayerType`` of small functions of one signature. Adding a layer type is adding a row to ``LAYER_TYPES``.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from torch import Size, Tensor, nn

from amcsearch.core import LayerKind, LayerSpec, Side

__all__ = [
    "CUSTOM_NORM",
    "LAYER_TYPES",
    "Axis",
    "LayerType",
    "affine",
    "folded",
    "layer_type",
    "merged",
    "no_norm",
    "norm_dim",
    "padded",
    "pair",
    "plane",
    "take_for_norm",
    "tokens",
    "unit_period",
    "vector_dim",
]


@dataclass(frozen=True)
class Axis:
    """``dim`` of ``tensor`` holds the channels of ``side``; channel c sits at ``c % period`` (0: at c)."""

    tensor: str
    dim: int
    side: Side
    period: int = 0


@dataclass(frozen=True)
class LayerType:
    """What the graph must know of one module type.

    - ``spec(name, module, x, y)``: shapes from the input and output shape of one call, weights taken as owned.
    - ``axes(module)``: where channels live in its tensors.
    - ``attributes(module)``: integer (or 1-tuple) attributes that state a width, with the side they follow.
    - ``passes(module)``: input channel c is output channel c (norms, depthwise convolution).
    - ``mixes(module)``: statistics are taken over channels, so zeroed channels would count.
    """

    spec: Callable[[str, Any, Size, Size], LayerSpec]
    axes: Callable[[Any], tuple[Axis, ...]]
    attributes: Callable[[Any], tuple[tuple[str, Side], ...]]
    passes: bool = False
    mixes: bool = False


def plane(sizes: Iterable[int]) -> tuple[int, int]:
    """Spatial or token dimensions as (height, width): () → (1, 1), (T,) → (T, 1), more than two are multiplied."""
    dims = [int(size) for size in sizes]
    return (prod(dims[:-1]), dims[-1]) if len(dims) > 1 else (prod(dims), 1)


def tokens(shape: Size) -> tuple[int, int]:
    """Positions of a (1, …, C) tensor; a leading dimension above 1 (windows, time-major) is made of positions too."""
    lead = tuple(shape[:-1])
    return plane(lead[1:] if lead and lead[0] == 1 else lead)


def merged(sizes: Iterable[int]) -> tuple[int, int]:
    """A kernel's or stride's sizes as two: (k,) → (k, 1), (t, h, w) → (t·h, w)."""
    dims = [int(size) for size in sizes]
    return (dims[0], 1) if len(dims) == 1 else (prod(dims[:-1]), dims[-1])


def pair(sizes: Iterable[int], least: int = 0) -> tuple[int, int]:
    """Padding or dilation as two: (p,) → (p, ``least``), (t, h, w) → (h, w)."""
    dims = [int(size) for size in sizes]
    return (dims[0], least) if len(dims) == 1 else (dims[-2], dims[-1])


def padded(padding: Iterable[int], kernel: Iterable[int], stride: Iterable[int]) -> tuple[int, int]:
    """Padding as two; that of the merged axes of a volume keeps its size up to the stride."""
    dims, (height, _), (step, _) = [int(size) for size in padding], merged(kernel), merged(stride)
    return (max(0, (height - step + 1) // 2), dims[-1]) if len(dims) > 2 else pair(dims)


def folded(pieces: int, sizes: Iterable[int]) -> tuple[int, int]:
    """The map of ``pieces`` images (windows, frames of one sample) that lie under each other."""
    height, width = plane(sizes)
    return int(pieces) * height, width


def _padding(m: Any) -> tuple[int, ...]:
    if m.padding == "valid":
        return (0,) * len(m.kernel_size)
    if m.padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(m.kernel_size, m.dilation, strict=True))
    return tuple(m.padding)


def _conv_spec(name: str, m: Any, x: Size, y: Size) -> LayerSpec:
    axes = len(m.kernel_size)
    pieces = prod(x[: -axes - 1])
    return LayerSpec(
        name, LayerKind.CONV, int(x[-axes - 1]), int(y[-axes - 1]), merged(m.kernel_size), merged(m.stride),
        padded(_padding(m), m.kernel_size, m.stride), pair(m.dilation, 1), m.groups, folded(pieces, x[-axes:]),
        folded(pieces, y[-axes:]),
        has_bias=m.bias is not None,
    )  # fmt: skip


def _conv_axes(m: Any) -> tuple[Axis, ...]:
    """Weight (C_out, C_in / groups, kH, kW)."""
    axes = (Axis("weight", 0, Side.OUT), Axis("bias", 0, Side.OUT))
    if _depthwise(m):
        return axes
    return (*axes, Axis("weight", 1, Side.IN, m.in_channels // m.groups))


def _transposed_axes(m: Any) -> tuple[Axis, ...]:
    """Weight (C_in, C_out / groups, kH, kW)."""
    axes = (Axis("weight", 0, Side.IN), Axis("bias", 0, Side.OUT))
    if _depthwise(m):
        return axes
    return (*axes, Axis("weight", 1, Side.OUT, m.out_channels // m.groups))


def _depthwise(m: Any) -> bool:
    return bool(m.groups > 1 and m.groups == m.in_channels)


def _conv_attributes(m: Any) -> tuple[tuple[str, Side], ...]:
    widths = (("in_channels", Side.IN), ("out_channels", Side.OUT))
    return (*widths, ("groups", Side.IN)) if _depthwise(m) else widths


def _linear_spec(name: str, m: Any, x: Size, y: Size) -> LayerSpec:
    has_bias = getattr(m, "bias", None) is not None
    return LayerSpec(
        name, LayerKind.LINEAR, int(x[-1]), int(y[-1]), in_size=tokens(x), out_size=tokens(y), has_bias=has_bias
    )


def _linear_axes(_: Any) -> tuple[Axis, ...]:
    """Weight (C_out, C_in)."""
    return Axis("weight", 0, Side.OUT), Axis("weight", 1, Side.IN), Axis("bias", 0, Side.OUT)


def _norm_spec(kind: LayerKind) -> Callable[[str, Any, Size, Size], LayerSpec]:
    def spec(name: str, m: Any, x: Size, _: Size) -> LayerSpec:
        dim = norm_dim(m, x)
        channels, spatial = int(x[dim]), x[1:dim] + x[dim + 1 :] if dim != 0 else x[1:]
        size = tokens(x) if dim == len(x) - 1 else folded(x[0] if dim else 1, spatial)
        has_weight, has_bias = (vector is not None for vector in affine(m))
        positions = plane(getattr(m, "normalized_shape", ())[1:])
        return LayerSpec(
            name, kind, channels, channels, positions, conv_groups=getattr(m, "num_groups", 1), in_size=size,
            out_size=size, has_weight=has_weight, has_bias=has_bias,
        )  # fmt: skip

    return spec


def _is_per_channel(m: Any) -> bool:
    """Whether a group norm has a group for every channel."""
    return isinstance(m, nn.GroupNorm) and m.num_groups == m.num_channels


def _group_norm_attributes(m: Any) -> tuple[tuple[str, Side], ...]:
    width = (("num_channels", Side.OUT),)
    return (*width, ("num_groups", Side.OUT)) if _is_per_channel(m) else width


def norm_dim(m: Any, shape: Size) -> int:
    """Dimension of the channels in a norm's input: the last for layer norms over tokens, else 1.

    Of a layer norm over several dimensions it is the first of them.

    A layer norm with a forward of its own may take maps (N, C, H, W): its width says which dimension it is.
    """
    if not isinstance(m, nn.LayerNorm | nn.RMSNorm) and layer_type(m) is not CUSTOM_NORM:
        return 1
    if getattr(m, "data_format", "") == "channels_first":
        return 1
    vector = affine(m)[0]
    if vector is not None and vector_dim(vector) and len(shape) >= vector.ndim:  # (1, C, 1, 1) and (1, 1, 1, C)
        return len(shape) - vector.ndim + vector_dim(vector)
    normalised = len(getattr(m, "normalized_shape", ()))
    if normalised > 1 and len(shape) > normalised:
        return len(shape) - normalised  # (C, L) and (C, H, W)
    last, has_own_forward = len(shape) - 1, type(m).forward not in (nn.LayerNorm.forward, nn.RMSNorm.forward)
    width = m.normalized_shape[-1] if isinstance(m, nn.LayerNorm | nn.RMSNorm) else vector.numel()  # type: ignore[union-attr]
    return 1 if has_own_forward and len(shape) > 2 and shape[1] == width and _is_map(m, shape, width) else last


def _is_map(m: Any, shape: Size, width: int) -> bool:
    """Whether dimension 1 holds the channels; where the last is as long, norms over maps say so by their names."""
    return bool(shape[-1] != width or "2d" in type(m).__name__.lower())


def _vector_axes(*tensors: str) -> Callable[[Any], tuple[Axis, ...]]:
    return lambda _: tuple(Axis(tensor, 0, Side.OUT) for tensor in tensors)


def _vectors(m: nn.Module) -> dict[str, Tensor]:
    """Parameters and then buffers of a module itself."""
    return {**dict(m.named_parameters(recurse=False)), **dict(m.named_buffers(recurse=False))}


def _axes_of_vectors(m: Any) -> tuple[Axis, ...]:
    """All parameters and buffers, vectors of any rank."""
    return tuple(Axis(name, vector_dim(vector), Side.OUT) for name, vector in _vectors(m).items())


def _widths_of_vectors(m: Any) -> tuple[tuple[str, Side], ...]:
    """Attributes that are as large as the vectors are long: ``dim`` = C, ``shape`` = (C,)."""
    width = next(iter(_vectors(m).values())).numel()
    same = [key for key, value in vars(m).items() if (type(value) is int and value == width) or value == (width,)]
    return tuple((key, Side.OUT) for key in same)


def _stated(*attributes: tuple[str, Side]) -> Callable[[Any], tuple[tuple[str, Side], ...]]:
    return lambda _: attributes


def _embedding_spec(name: str, m: Any, _: Size, y: Size) -> LayerSpec:
    size = tokens(y)
    return LayerSpec(name, LayerKind.EMBEDDING, m.num_embeddings, m.embedding_dim, in_size=size, out_size=size)


def _prelu_spec(name: str, m: Any, *_: Size) -> LayerSpec:
    return LayerSpec(name, LayerKind.PARAMETER, 1, m.num_parameters)


def _prelu_axes(m: Any) -> tuple[Axis, ...]:
    return (Axis("weight", 0, Side.OUT),) if m.num_parameters > 1 else ()


def _prelu_attributes(m: Any) -> tuple[tuple[str, Side], ...]:
    return (("num_parameters", Side.OUT),) if m.num_parameters > 1 else ()


_AFFINE, _RUNNING = ("weight", "bias"), ("running_mean", "running_var")
_FEATURES = _stated(("num_features", Side.OUT))
CUSTOM_NORM = LayerType(
    _norm_spec(LayerKind.LAYER_NORM), _axes_of_vectors, _widths_of_vectors, passes=True, mixes=True
)  # a leaf written by someone else that scales its channels, recognised by ``_is_custom_norm``
_NORM_NAME: Final = re.compile("(Norm|Normali[sz]ation|GRN)([123]d)?$")
"""GRN: global response normalisation (Woo et al., 2023, arXiv 2301.00808), which divides by a mean over channels."""
_TAKEN: Final = "_amcsearch_is_norm"  # set on a module that no name tells for a norm
_LIKE_NORM: Final = re.compile("[Nn]orm|GRN|RMS|LN")
LAYER_TYPES: dict[type[nn.Module], LayerType] = {
    nn.Conv1d: LayerType(_conv_spec, _conv_axes, _conv_attributes),
    nn.Conv2d: LayerType(_conv_spec, _conv_axes, _conv_attributes),
    nn.Conv3d: LayerType(_conv_spec, _conv_axes, _conv_attributes),
    nn.ConvTranspose1d: LayerType(_conv_spec, _transposed_axes, _conv_attributes),
    nn.ConvTranspose2d: LayerType(_conv_spec, _transposed_axes, _conv_attributes),
    nn.ConvTranspose3d: LayerType(_conv_spec, _transposed_axes, _conv_attributes),
    nn.Linear: LayerType(
        _linear_spec, _linear_axes, _stated(("in_features", Side.IN), ("out_features", Side.OUT))
    ),
    nn.modules.batchnorm._BatchNorm: LayerType(
        _norm_spec(LayerKind.BATCH_NORM), _vector_axes(*_AFFINE, *_RUNNING), _FEATURES, passes=True
    ),
    nn.modules.instancenorm._InstanceNorm: LayerType(
        _norm_spec(LayerKind.GROUP_NORM), _vector_axes(*_AFFINE, *_RUNNING), _FEATURES, passes=True
    ),
    nn.LayerNorm: LayerType(
        _norm_spec(LayerKind.LAYER_NORM), _vector_axes(*_AFFINE), _stated(("normalized_shape", Side.OUT)), True, True
    ),
    nn.RMSNorm: LayerType(
        _norm_spec(LayerKind.LAYER_NORM), _vector_axes(*_AFFINE), _stated(("normalized_shape", Side.OUT)), True, True
    ),
    nn.GroupNorm: LayerType(
        _norm_spec(LayerKind.GROUP_NORM), _vector_axes(*_AFFINE), _group_norm_attributes, True, True
    ),
    nn.PReLU: LayerType(_prelu_spec, _prelu_axes, _prelu_attributes, passes=True),
    nn.Embedding: LayerType(
        _embedding_spec, lambda _: (Axis("weight", 1, Side.OUT),), _stated(("embedding_dim", Side.OUT))
    ),
}  # fmt: skip


def layer_type(module: object) -> LayerType | None:
    """Return the row of a module's type or of its nearest base class; None for containers and unknown layers."""
    for base in type(module).__mro__:
        if base in LAYER_TYPES:
            return LAYER_TYPES[base]
    is_norm = isinstance(module, nn.Module) and (_TAKEN in vars(module) or _is_custom_norm(module))
    return CUSTOM_NORM if is_norm else None


def take_for_norm(module: nn.Module) -> bool:
    """Take a module that combines its channels for a norm, if it can be one of one input; say whether it is one now."""
    if layer_type(module) is None and _scales_channels(module) and _inputs(type(module)) == 1:
        vars(module)[_TAKEN] = True
        return True
    return False


def no_norm(module: nn.Module) -> None:
    """Forget that a module was taken for a norm."""
    vars(module).pop(_TAKEN, None)


def _is_custom_norm(module: nn.Module) -> bool:
    """Whether a leaf that scales channels is called a norm."""
    return _is_called_norm(type(module)) and _scales_channels(module)


def _scales_channels(module: nn.Module) -> bool:
    """Whether a leaf holds one or two vectors of one width, as (C,) or (1, C, 1, 1), and no more.

    The second may be a buffer, such as a bias of zeros.
    """
    vectors = list(_vectors(module).values())
    return (
        not any(True for _ in module.children())
        and any(True for _ in module.parameters(recurse=False))
        and len(vectors) <= 2
        and all(p.ndim and p.numel() == max(p.shape) == vectors[0].numel() for p in vectors)
    )


def _is_called_norm(kind: type[nn.Module]) -> bool:
    """Whether the name of a type ends as those of norms do, or holds such a word where ``forward`` has one input.

    A norm with a gate (``RMSNormGated`` of Mamba 2) has two, whose channels its operations tie.
    """
    if _NORM_NAME.search(kind.__name__):
        return True
    return bool(_LIKE_NORM.search(kind.__name__)) and _inputs(kind) == 1


def _inputs(kind: type[nn.Module]) -> int:
    """How many arguments ``forward`` has."""
    return len(inspect.signature(kind.forward).parameters) - 1


def affine(module: Any) -> tuple[Tensor | None, Tensor | None]:
    """What scales a layer and what is added, None for what it lacks; of norms by others they may have any names."""
    if layer_type(module) is CUSTOM_NORM and getattr(module, "weight", None) is None:
        vectors = [*_vectors(module).values(), None]
        return vectors[0], vectors[1]
    return getattr(module, "weight", None), getattr(module, "bias", None)


def vector_dim(vector: Tensor) -> int:
    """Dimension of the channels of a vector: the longest where others have size 1, else the first."""
    is_vector = vector.numel() == max(vector.shape, default=1)
    return vector.shape.index(vector.numel()) if is_vector and vector.ndim else 0


def unit_period(module: Any, side: Side) -> int:
    """Return p such that channels equal modulo p must leave together on this side of the layer; 0 for no such tie.

    A grouped convolution or group norm keeps its groups, so each loses the same positions.
    """
    if _is_per_channel(module):
        return 0
    if isinstance(module, nn.GroupNorm):
        return module.num_channels // module.num_groups if module.num_groups > 1 else 0
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and not _depthwise(module):
        return (module.in_channels if side is Side.IN else module.out_channels) // module.groups
    return 0
