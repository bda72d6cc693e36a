"""A layer that reads a group, made from a weight and rows of inputs: the smallest problem a selector can have."""

import torch
from torch import Tensor

from amcsearch.methods.layer_inputs import LayerInputs
from amcsearch.methods.selector import Reader

__all__ = ["random_reader", "reader"]


def reader(weight: Tensor, rows: Tensor, width: int = 1, *, centred: bool = False, taps: int = 1) -> Reader:
    """Weight (O, D), rows (n, D); each unit owns ``width`` columns, one after the other."""
    mean = rows.mean(0) if centred else torch.zeros_like(rows[0])
    gram = (rows - mean).T @ (rows - mean) / len(rows)
    inputs = LayerInputs("it", "it.weight", None, None, taps, len(rows), mean[None], gram[None])
    return Reader(inputs, weight[None], torch.arange(weight.shape[1]).reshape(-1, width))


def random_reader(seed: int, channels: int = 6, width: int = 1, outputs: int = 4, n: int = 40) -> tuple[Reader, Tensor]:
    """A reader of correlated inputs, and its rows (n, D), in double precision."""
    generator = torch.Generator().manual_seed(seed)
    columns = channels * width
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    rows = torch.randn(n, columns, generator=generator, dtype=torch.float64) @ (mix + 2 * torch.eye(columns))
    return reader(torch.randn(outputs, columns, generator=generator, dtype=torch.float64), rows, width), rows
