"""A network that a runtime has loaded from a file: run on arrays, called for timing, and as a torch module.

``FileModule`` lets the code that judges the torch network judge the delivered file too, in whatever runtime.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Tree
from amcsearch.runtime.signature import Signature, arrays_of, call_of, calls, joined, sample_axis

__all__ = ["FileModule", "LoadedNetwork", "Port", "outputs_of_calls"]


class Port(NamedTuple):
    """An input of a file: its name, and its shape, None where an axis may have any length."""

    name: str
    shape: tuple[int | None, ...]


class LoadedNetwork(ABC):
    """A network in a runtime; one thread at a time calls it."""

    @property
    @abstractmethod
    def inputs(self) -> Sequence[Port]:
        """The inputs in the order of a call; the first axis of those that hold samples is the number of samples."""

    @abstractmethod
    def run(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Return all outputs, in the order of ``Signature.outputs``, in memory that later calls do not write.

        Raises:
            BadInputError: the runtime cannot run the network on these inputs.
        """

    @abstractmethod
    def bound_call(self, arrays: Sequence[NDArray[np.generic]]) -> Callable[[], None]:
        """Return what runs the network once on these inputs, for timing: as little as possible is copied on the way.

        Raises:
            BadInputError: the network does not take such inputs.
        """

    @property
    def elsewhere(self) -> str | None:
        """What of the network does not run where the provider says, in a sentence; None where nothing is known of it.

        An example is an operator that a backend does not have, and that the runtime computes by slower code.
        """
        return None


def outputs_of_calls(network: LoadedNetwork, batch: Batch) -> Iterator[list[NDArray[np.generic]]]:
    """All outputs of each call for the samples of a batch, any number of them, in calls of the file's own batch.

    The last call is filled up with samples from the beginning; a file of any batch takes all samples in one call.

    Raises:
        BadInputError: the batch has other inputs than the file, or the runtime cannot run it.
    """
    ports, tensors = network.inputs, batch.inputs.values()
    if len(ports) != len(tensors):
        names = ", ".join(port.name for port in ports)
        raise BadInputError(f"the file cannot be run: it has {len(ports)} inputs ({names}), {len(tensors)} were given")
    sizes = (p.shape[0] for p, t in zip(ports, tensors, strict=True) if t.ndim and len(t) == batch.size and p.shape)
    size = next(sizes, None)
    for call in calls(batch, batch.size if size is None else size):
        yield network.run(arrays_of(call))


class FileModule(nn.Module):
    """Runs a loaded network on any number of samples, and gives what the network does that its file was made from.

    Args:
        loaded: its inputs are those of a call, in order.
        signature: of the network. Without one, the result is the output of a file of one, a tuple of several, with
            their samples along the first axis that is as long as a call.
    """

    def __init__(self, loaded: LoadedNetwork, signature: Signature | None = None) -> None:
        super().__init__()
        self._loaded, self._signature = loaded, signature

    @property
    def elsewhere(self) -> str | None:
        """As ``LoadedNetwork.elsewhere``."""
        return self._loaded.elsewhere

    def forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Samples → the network's outputs, in calls of the file's own batch.

        Raises:
            BadInputError: the runtime cannot run the network on these inputs.
        """
        whole = call_of(args, kwargs)
        parts = [[torch.from_numpy(np.asarray(array)) for array in a] for a in outputs_of_calls(self._loaded, whole)]
        if self._signature is not None:
            return self._signature.filled(joined(parts, self._signature.axes, whole.size))
        shape = self._loaded.inputs[0].shape
        size = whole.size if not shape or shape[0] is None else shape[0]
        tensors = joined(parts, [sample_axis(tensor, size) for tensor in parts[0]], whole.size)
        return tensors[0] if len(tensors) == 1 else tuple(tensors)
