"""No labels: the dense network's own outputs become the targets, and a smaller network is asked to keep them.

    loss = 1 - mean cos(f(x), f_dense(x)),  accuracy = mean cos(f(x), f_dense(x))

The targets of knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531), taken once; the direction of an
embedding is what it is used for, so that its length is left free. At the dense network the loss and its gradient are
exactly 0 for every sample: what is made of that gradient (Taylor, the empirical Fisher) orders nothing. The second
derivatives there are J' P J / |f|^2, J the outputs' Jacobian and P the projection across f: positive, and found by
``obd`` as well as by ``true_fisher``, whose drawn labels are outputs with noise.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amcsearch.graph.modes import evaluating
from amcsearch.graph.outputs import first_tensor
from amcsearch.training.splits import SPLITS, DataSplits, stacked

__all__ = ["dense_outputs", "with_dense_targets"]


def dense_outputs(model: nn.Module, inputs: Tensor, batch_size: int = 128) -> Tensor:
    """Return the model's outputs (N, …, D) for inputs (N, …), on the CPU; it runs in eval mode where it is."""
    torch_device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        found = [first_tensor(model(batch.to(torch_device))).cpu() for batch in torch.split(inputs, batch_size)]
    return torch.cat(found)


def with_dense_targets(splits: DataSplits, model: nn.Module) -> DataSplits:
    """Return the splits, in memory, with the outputs of ``model`` in place of their targets.

    Raises:
        BadInputError: as ``stacked``.
    """
    inputs = {name: stacked(getattr(splits, name))[0] for name in SPLITS}
    return DataSplits(**{name: TensorDataset(x, dense_outputs(model, x)) for name, x in inputs.items()})
