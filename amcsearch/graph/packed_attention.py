"""``nn.MultiheadAttention`` with any number of heads on a stream of any width.

Torch's own module asserts that heads x head width is the width of the stream, so that neither can be removed alone.
``PackedAttention`` computes the same from the same parameters under the same names, and takes both from their shapes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout, self.training)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
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


def free_heads(module: nn.Module) -> None:
    """Make an ``nn.MultiheadAttention`` compute with the widths of its tensors, in place; others stay as they are."""
    if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
        module.__class__ = PackedAttention
        module._qkv_same_embed_dim = False  # torch's encoder layers do not take their fused path then
