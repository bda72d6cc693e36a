"""``nn.MultiheadAttention`` with any number of heads on a stream of any width.

Torch's own module and ``F.multi_head_attention_forward`` assert that heads x head width is the width of the stream, so
that neither can be removed alone. ``PackedAttention`` computes the same as the module from the same parameters under
the same names, and takes both from their shapes. So does ``_FreeWidths`` for modules whose code calls the function.
"""

import inspect
import math
from collections import defaultdict
from itertools import takewhile
from threading import get_ident
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["PackedAttention", "free_heads"]


class PackedAttention(nn.MultiheadAttention):
    """Multi-head attention (Vaswani et al., 2017, arXiv 1706.03762) of which heads and stream channels may be gone.

    Made of an ``nn.MultiheadAttention`` by ``free_heads``, not by its constructor. Inputs, masks and outputs are those
    of torch's module; without its fused path, to which the widths mean something else.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002 (a hint that goes with attn_mask, as in torch's module)
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, of the query's shape, and the weights (batch, [heads,] targets, sources) if needed."""
        is_batched = query.ndim == 3
        order = (lambda x: x if self.batch_first else x.transpose(0, 1)) if is_batched else (lambda x: x[None])
        q, k, v = (
            x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for x in self._projected(query, key, value, order)
        )
        mask = _mask(attn_mask, key_padding_mask, q, is_batched)
        dropout = self.dropout if self.training else 0.0
        heads, weights = _attended(q, k, v, mask, dropout, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not is_batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, order: object) -> tuple[Tensor, ...]:
        """Queries, keys and values (batch, tokens, heads x width)."""
        assert callable(order)
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(order(query), self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is None
            else self.in_proj_weight.chunk(3)
        )
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return tuple(F.linear(order(x), w, b) for x, w, b in zip(inputs, weights, biases, strict=True))


def _attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """softmax(Q Kᵀ / sqrt(width) + mask) V of (batch, heads, tokens, width), and the weights if needed."""
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
    return weights @ v, weights


def _mask(attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, is_batched: bool) -> Tensor | None:
    """One mask to add to (batch, heads, targets, sources); bool masks are true where nothing is read."""
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask.reshape(*query.shape[:2], *attn_mask.shape[1:]) if attn_mask.ndim == 3 else attn_mask)
    if padding is not None:
        masks.append(padding[:, None, None] if is_batched else padding[None, None, None])
    added = [
        torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -math.inf) if mask.dtype == torch.bool else mask
        for mask in masks
    ]
    return None if not added else added[0] if len(added) == 1 else added[0] + added[1]


class _FreeWidths(TorchFunctionMode):
    """Runs ``F.multi_head_attention_forward`` with the widths of the weights that it is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if not any(given.arguments[name] is not None for name in ("bias_k", "static_k", "static_v")) and (
                not given.arguments["add_zero_attn"]
            ):
                return _of_weights(given.arguments)
        return func(*args, **(kwargs or {}))


_FUNCTION: Final = F.multi_head_attention_forward.__name__
_SIGNATURE: Final = inspect.signature(F.multi_head_attention_forward)
_CALLS: Final[dict[type, bool]] = {}
_RUNNING: Final[dict[int, list[_FreeWidths]]] = defaultdict(list)  # by thread, the innermost last


def _of_weights(given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Compute ``F.multi_head_attention_forward`` of its arguments by name; inputs are (tokens, batch, C)."""
    inputs = [given[name] for name in ("query", "key", "value")]
    is_batched = inputs[0].ndim == 3
    inputs = inputs if is_batched else [x.unsqueeze(1) for x in inputs]
    weights = [given[f"{name}_proj_weight"] for name in "qkv"]
    weights = weights if given["use_separate_proj_weight"] else given["in_proj_weight"].chunk(3)
    biases = (None, None, None) if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    q, k, v = (
        F.linear(x, w, b).reshape(*x.shape[:2], given["num_heads"], -1).permute(1, 2, 0, 3)
        for x, w, b in zip(inputs, weights, biases, strict=True)
    )  # (batch, heads, tokens, width)
    mask = _mask(given["attn_mask"], given["key_padding_mask"], q, is_batched)
    dropout = given["dropout_p"] if given["training"] else 0.0
    heads, shares = _attended(q, k, v, mask, dropout, given["need_weights"])
    output = F.linear(heads.permute(2, 0, 1, 3).flatten(2), given["out_proj_weight"], given["out_proj_bias"])
    if shares is not None and given["average_attn_weights"]:
        shares = shares.mean(1)
    return (output, shares) if is_batched else (output[:, 0], None if shares is None else shares[0])


def _enter(*_: object) -> None:
    mode = _FreeWidths()
    mode.__enter__()  # type: ignore[no-untyped-call]  # torch does not annotate it
    _RUNNING[get_ident()].append(mode)


def _leave(*_: object) -> None:
    _RUNNING[get_ident()].pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # as above


def _calls_function(kind: type) -> bool:
    """Whether the code of a module, up to classes of torch itself, calls ``F.multi_head_attention_forward``."""
    if kind not in _CALLS:
        bases = takewhile(lambda base: not base.__module__.startswith("torch."), kind.__mro__)
        codes = (getattr(value, "__code__", None) for base in bases for value in vars(base).values())
        _CALLS[kind] = any(_FUNCTION in code.co_names for code in codes if code is not None)
    return _CALLS[kind]


def free_heads(module: nn.Module) -> None:
    """Let attention compute with the widths of its tensors, in place; modules without it stay as they are.

    An ``nn.MultiheadAttention`` becomes a ``PackedAttention``; code that calls torch's function gets hooks.
    """
    if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
        module.__class__ = PackedAttention
        module._qkv_same_embed_dim = False  # torch's encoder layers do not take their fused path then
    elif _calls_function(type(module)) and _enter not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_enter)
        module.register_forward_hook(_leave, always_call=True)
