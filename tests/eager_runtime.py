"""Runtimes of one's own, as a user writes them: pickled networks, run by torch itself."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, as_batch, duplicate, tensors_of_tree
from amcsearch.runtime import LoadedNetwork, OnnxSettings, Port, Runtime


class EagerNetwork(LoadedNetwork):
    def __init__(self, module: nn.Module, example: Batch) -> None:
        self.module, self.example = module, example

    @property
    def inputs(self) -> Sequence[Port]:
        return [Port(name, tuple(tensor.shape)) for name, tensor in self.example.inputs.items()]

    def run(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        if [array.shape for array in arrays] != [port.shape for port in self.inputs]:
            raise BadInputError(f"eager: inputs of shapes {[array.shape for array in arrays]}, see {self.inputs}")
        tensors = iter(map(torch.from_numpy, arrays))
        with torch.no_grad():
            output = self.example.map(lambda _: next(tensors)).through(self.module)
        return [tensor.numpy() for _, tensor in tensors_of_tree(output)]

    def bound_call(self, arrays: Sequence[NDArray[np.generic]]) -> Callable[[], None]:
        self.run(arrays)
        return lambda: self.run(arrays) and None


class EagerRuntime(Runtime):
    name = "eager"
    suffix = ".eager"

    def exported(self, model: nn.Module, example: Batch | Tensor, settings: OnnxSettings | None = None) -> bytes:
        file = io.BytesIO()
        torch.save((duplicate(model).eval(), as_batch(example)), file)
        return file.getvalue()

    def load(self, file: Path | bytes) -> EagerNetwork:
        try:
            content = file if isinstance(file, bytes) else file.read_bytes()
            return EagerNetwork(*torch.load(io.BytesIO(content), weights_only=False))
        except Exception as error:
            raise BadInputError(f"eager: not a file of a network: {error}") from error

    def version(self) -> str:
        return torch.__version__


class Wrong(EagerRuntime):
    """Changes the network's outputs."""

    name = "wrong"

    def load(self, file: Path | bytes) -> EagerNetwork:
        network = super().load(file)
        network.run = lambda arrays: [array + 1.0 for array in EagerNetwork.run(network, arrays)]
        return network


class NoExport(EagerRuntime):
    """Cannot hold any network."""

    def exported(self, model: nn.Module, example: Batch | Tensor, settings: OnnxSettings | None = None) -> bytes:
        raise BadInputError(f"eager cannot hold {type(model).__name__}")


class Taken(EagerRuntime):
    """Would write over another file of the run."""

    suffix = ".pt2"


class Named(EagerRuntime):
    """Takes the name of another runtime."""

    name = "onnxruntime"
