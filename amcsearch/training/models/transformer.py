"""A small vision transformer and a small causal language model on one pre-norm block.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv 2010.11929; Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners" (GPT-2). Queries, keys and values have projections of their own, and the number of
heads is read from their width at run time, so that a block works unchanged after heads are removed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core import BadInputError

__all__ = ["Attention", "Block", "LanguageModel", "VisionTransformer", "language_model", "vit"]


class Attention(nn.Module):
    """Multi-head attention over (B, T, dim); ``num_heads`` heads of ``head_width`` features each."""

    def __init__(self, dim: int, num_heads: int, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = dim // num_heads
        self.causal = causal
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) → (B, T, dim)."""
        q, k, v = (self._heads(layer(x)) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, T, head_width)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], -1, self.head_width).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)) with GELU."""

    def __init__(self, dim: int, num_heads: int, mlp_width: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp_width)
        self.down = nn.Linear(mlp_width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) → (B, T, dim)."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Images (B, in_channels, S, S) → logits (B, num_classes), read off the class token."""

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, patch: int, dim: int, blocks: nn.Sequential
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2 + 1, dim))
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        for parameter in (self.class_token, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.patches(x).flatten(2).transpose(1, 2)  # (B, patches, dim)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.position))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Token ids (B, T), int64, T up to ``context`` → logits (B, T, vocabulary); position t sees tokens 0…t."""

    def __init__(self, vocabulary: int, context: int, dim: int, blocks: nn.Sequential, tie_embeddings: bool) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(context, dim)
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        for table in (self.tokens, self.positions, self.head):
            nn.init.normal_(table.weight, std=0.02)
        if tie_embeddings:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position."""
        position = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(position)
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def _blocks(dim: int, depth: int, num_heads: int, mlp_width: int, causal: bool) -> nn.Sequential:
    if min(dim, depth, num_heads, mlp_width) < 1:
        raise BadInputError(
            f"dim = {dim}, depth = {depth}, num_heads = {num_heads}, mlp_width = {mlp_width}: all must be at least 1"
        )
    if dim % num_heads:
        raise BadInputError(f"dim = {dim}, must be a multiple of num_heads = {num_heads}")
    return nn.Sequential(*(Block(dim, num_heads, mlp_width, causal) for _ in range(depth)))


def vit(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 32,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    num_heads: int = 4,
    mlp_width: int = 128,
) -> VisionTransformer:
    """Small vision transformer (Dosovitskiy et al. 2021): class token, learned positions, pre-norm, GELU.

    Args:
        num_classes: logits of the head.
        in_channels: channels of the input image, (B, in_channels, image_size, image_size).
        image_size: side of the input in pixels.
        patch: side of a patch in pixels; there are (image_size / patch)² patches.
        dim: width of the residual stream.
        depth: blocks.
        num_heads: attention heads of dim / num_heads features each.
        mlp_width: width of the feed-forward layer.

    Raises:
        BadInputError: a count below 1, patches that do not tile the image, or heads that do not divide ``dim``.
    """
    if patch < 1 or image_size < patch or image_size % patch:
        raise BadInputError(f"image_size = {image_size}, must be a multiple of patch = {patch}")
    blocks = _blocks(dim, depth, num_heads, mlp_width, causal=False)
    return VisionTransformer(num_classes, in_channels, image_size, patch, dim, blocks)


def language_model(
    vocabulary: int = 256,
    context: int = 64,
    dim: int = 96,
    depth: int = 3,
    num_heads: int = 4,
    mlp_width: int = 256,
    tie_embeddings: bool = False,
) -> LanguageModel:
    """Small causal transformer over bytes (after GPT-2, Radford et al. 2019).

    Args:
        vocabulary: number of token ids; bytes have 256.
        context: longest sequence, tokens.
        dim: width of the residual stream.
        depth: blocks.
        num_heads: attention heads of dim / num_heads features each.
        mlp_width: width of the feed-forward layer.
        tie_embeddings: whether the head shares the token embedding's weight.

    Raises:
        BadInputError: a count below 1, or heads that do not divide ``dim``.
    """
    if min(vocabulary, context) < 1:
        raise BadInputError(f"vocabulary = {vocabulary}, context = {context}: both must be at least 1")
    blocks = _blocks(dim, depth, num_heads, mlp_width, causal=True)
    return LanguageModel(vocabulary, context, dim, blocks, tie_embeddings)
