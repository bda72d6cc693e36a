"""Adaptive batch normalisation: batch-norm statistics of a pruned network, measured on calibration data.

Li et al., EagleEye, 2020 (arXiv 2007.02491). Departures: the old statistics are discarded (theirs decay by 0.9 a
batch); the average over batches is cumulative and exact; only batch norms are in train mode, dropout and all other
modules stay in eval mode.

    after the batches b = 1 … B of n_b samples:  mean = sum n_b mean_b / sum n_b,  var = sum n_b var_b / sum n_b

``var_b`` is the unbiased variance of one batch, so the variance between batches is left out: prefer large batches, and
at least 1000 samples.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    """
    norms = _norms(model)
    if not norms:
        return
    torch_device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for module in model.modules():
                if isinstance(module, ConstantLayer):
                    module.train()  # spread over all positions, of which a batch norm in train mode needs two
            sample_count = 0
            for batch in batches:
                sample_count += batch.size
                for norm in norms:  # weight of the newest batch: 1, 1/2, 1/3, … for equal batches
                    norm.momentum = batch.size / sample_count
                batch.to(torch_device).through(model)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
