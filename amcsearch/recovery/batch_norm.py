"""Adaptive batch normalisation: batch-norm statistics of a pruned network, measured on calibration data.

Li et al., EagleEye, 2020 (arXiv 2007.02491). Departures: the old statistics are discarded (theirs decay by 0.9 a
batch); the average over batches is cumulative and exact; only batch norms are in train mode, dropout and all other
modules stay in eval mode.

    after the batches b = 1 … B of n_b samples:  mean = sum n_b mean_b / sum n_b,  var = sum n_b var_b / sum n_b

``var_b`` is the unbiased variance of one batch, so the variance between batches is left out: prefer large batches, and
at least 1000 samples.

A batch of which a batch norm reads one value of each channel, such as a last one of a single sample behind a global
pool, has no variance: the norm leaves it out, and normalises it with the statistics so far.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amcsearch.core import BadInputError
from amcsearch.graph import Batches, ConstantLayer, modes_kept

__all__ = ["keeps_statistics", "recalibrate_batch_norm"]


def keeps_statistics(model: nn.Module) -> bool:
    """Whether a batch norm of the model keeps running statistics, so that recalibration changes something."""
    return bool(_norms(model))


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def recalibrate_batch_norm(model: nn.Module, batches: Batches) -> None:
    """Replace, in place, the running statistics of every batch norm by those of ``batches``.

    A smaller last batch weighs by its samples. Modes and momenta are left as found. Nothing happens, and nothing is
    read, where no batch norm keeps running statistics.

    Raises:
        BadInputError: no batch gives a batch norm two values of a channel.
    """
    norms = _norms(model)
    if not norms:
        return
    torch_device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    samples, read = dict.fromkeys(norms, 0), dict[_BatchNorm, bool]()
    hooks = [norm.register_forward_pre_hook(partial(_leave_out_singles, read)) for norm in norms]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            for norm in norms:
                norm.reset_running_stats()
            for module in model.modules():
                if isinstance(module, ConstantLayer):
                    module.train()  # spread over all positions, of which a batch norm in train mode needs two
            for batch in batches:
                for norm in norms:  # weight of the newest batch: 1, 1/2, 1/3, … for equal batches
                    norm.momentum = batch.size / (samples[norm] + batch.size)
                batch.to(torch_device).through(model)
                for norm, is_enough in read.items():
                    samples[norm] += batch.size * is_enough
        _check_read(model, [norm for norm in norms if norm in read and not samples[norm]])
    finally:
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            norm.momentum = momentum
            hook.remove()


def _leave_out_singles(read: dict[_BatchNorm, bool], norm: Any, args: tuple[torch.Tensor, ...]) -> None:
    """Let a norm take statistics of what it reads, unless that is one value of each channel; note whether it does."""
    x = args[0]
    read[norm] = x.numel() > x.shape[1]
    norm.train(read[norm])


def _check_read(model: nn.Module, norms: Sequence[_BatchNorm]) -> None:
    names = [name for name, module in model.named_modules() if module in norms]
    if names:
        raise BadInputError(
            f"batch norm {names[0]} reads one value of each channel in every batch of the calibration split, which "
            "has no variance: set evaluation.batch_size and the calibration split to 2 samples or more, or "
            "recovery.bn_recalibration to false"
        )
