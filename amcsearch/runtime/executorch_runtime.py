"""ExecuTorch as a runtime: programs for XNNPACK, its backend for CPUs.

A network is captured by ``torch.export``, and XNNPACK takes what it has kernels for. The other operators stay with
ExecuTorch's portable kernels, which are slow: ``elsewhere`` counts them. A program has the sizes of its example.

XNNPACK computes in one pool of threads that all programs of the process share. A program goes on with the pool that it
was loaded with, and crashes the process where that one is replaced. So the number of threads is set while no program is
loaded, and another number is refused as long as one is.

What is timed is a call from Python, in which ExecuTorch copies inputs and outputs.
"""

import gc
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, read_bytes
from amcsearch.graph import Batch, as_batch, duplicate, evaluating
from amcsearch.runtime.base import Runtime
from amcsearch.runtime.export import FIXED, Flat, OnnxSettings
from amcsearch.runtime.loaded import LoadedNetwork, Port
from amcsearch.runtime.torch_programs import exporting, reason_of

__all__ = ["ExecuTorchRuntime"]

PACKAGE: Final = "executorch"
XNNPACK: Final = "XNNPACK"
METHOD: Final = "forward"
MOST_BYTES: Final = 2**34  # of a file
NAMED: Final = 4  # operators in a note
_LOADED: Final[WeakSet["ExecuTorchNetwork"]] = WeakSet()


class ExecuTorchNetwork(LoadedNetwork):
    """A program of ExecuTorch, loaded.

    Args:
        content: of the file.

    Raises:
        BadInputError: it is no program of this ExecuTorch.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        try:
            with exporting():
                self._program = importlib.import_module("executorch.runtime").Runtime.get().load_program(content)
                self._method = self._program.load_method(METHOD)
            described = self._method.metadata
            sizes = (described.input_tensor_meta(i).sizes() for i in range(described.num_inputs()))
            self._inputs = tuple(Port(f"input_{i}", tuple(shape)) for i, shape in enumerate(sizes))
        except Exception as error:  # whatever native code raises that is given a damaged file
            raise BadInputError(f"ExecuTorch cannot load the program: {reason_of(error)}") from error
        _LOADED.add(self)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs of the program, numbered, for it keeps no names."""
        return self._inputs

    def run(self, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Return all outputs.

        Raises:
            BadInputError: ExecuTorch cannot run the program on these inputs.
        """
        return [tensor.numpy() for tensor in self._execute(self._tensors(arrays))]

    def bound_call(self, arrays: Sequence[NDArray[np.generic]]) -> Callable[[], None]:
        """Return what runs the program once; ExecuTorch copies inputs and outputs at each call.

        Raises:
            BadInputError: the program does not take such inputs.
        """
        tensors, execute = self._tensors(arrays), self._method.execute
        self._execute(tensors)

        def call() -> None:
            execute(tensors)

        return call

    @property
    def elsewhere(self) -> str | None:
        """Which operators XNNPACK leaves to the portable kernels, in a sentence; None where it runs all."""
        try:
            reader = importlib.import_module("executorch.exir._serialize._program")
            plan = reader.deserialize_pte_binary(self._content).program.execution_plan[0]
            instructions = [each.instr_args for chain in plan.chains for each in chain.instructions]
            indices = [each.op_index for each in instructions if type(each).__name__ == "KernelCall"]
            names = sorted({plan.operators[index].name for index in indices})
        except Exception:  # a part of ExecuTorch that another version may have elsewhere
            return f"this executorch cannot say which operators of the network {XNNPACK} runs"
        if not indices:
            return None
        operators = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
        return (
            f"the network: {len(indices)} calls of operators ({operators}) run on ExecuTorch's portable kernels, not "
            f"on {XNNPACK}; latencies count both"
        )

    def _tensors(self, arrays: Sequence[NDArray[np.generic]]) -> list[Tensor]:
        given, wanted = [tuple(array.shape) for array in arrays], [port.shape for port in self._inputs]
        if given != wanted:
            raise BadInputError(f"the program cannot be run on inputs of shapes {given}, it takes {wanted}")
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]

    def _execute(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        try:
            outputs: Sequence[Tensor] = self._method.execute(tensors)
        except Exception as error:  # native code raises RuntimeError and others
            raise BadInputError(f"ExecuTorch cannot run the program: {reason_of(error)}") from error
        return outputs


class ExecuTorchRuntime(Runtime):
    """ExecuTorch with XNNPACK, its backend for CPUs.

    Raises:
        BadInputError: as ``Runtime``, ExecuTorch is not installed, or a provider that is not CPU or XNNPACK.
    """

    name: ClassVar[str] = PACKAGE
    suffix: ClassVar[str] = ".pte"

    def __init__(self, threads: int = 1, provider: str = "CPU") -> None:
        super().__init__(threads, XNNPACK)
        if provider.lower() not in ("cpu", XNNPACK.lower()):
            raise BadInputError(f"provider {provider!r} is not available; device.runtime={PACKAGE} has: {XNNPACK}")
        if importlib.util.find_spec(PACKAGE) is None:
            raise BadInputError(f"device.runtime = {PACKAGE!r} is not installed; pip install 'amcsearch[{PACKAGE}]'")

    def exported(self, model: nn.Module, example: Batch | Tensor, settings: OnnxSettings = FIXED) -> bytes:
        """Return the network as a program of ExecuTorch, of the example's sizes whatever the settings.

        Raises:
            BadInputError: torch or ExecuTorch cannot capture or hold the network; says why.
        """
        del settings
        batch = as_batch(example)
        with evaluating(model), exporting(), torch.no_grad():
            try:
                partitioner = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
                captured = torch.export.export(Flat(_in_order(model), batch).eval(), tuple(batch.inputs.values()))
                lower = importlib.import_module("executorch.exir").to_edge_transform_and_lower
                lowered = lower(captured, partitioner=[partitioner.XnnpackPartitioner()])
                return bytes(lowered.to_executorch().buffer)
            except Exception as error:  # whatever user code, torch and ExecuTorch may raise
                reason = reason_of(_first_cause(error))
                raise BadInputError(
                    f"cannot export {type(model).__name__} to ExecuTorch ({reason}); make its forward traceable by "
                    "torch.export"
                ) from error

    def load(self, file: Path | bytes) -> ExecuTorchNetwork:
        """Load a program, to be run by ``threads`` threads.

        Raises:
            BadInputError: as ``ExecuTorchNetwork``, or programs are loaded for another number of threads.
        """
        content = file if isinstance(file, bytes) else read_bytes(file, "program", MOST_BYTES)
        _set_threads(importlib.import_module("executorch.extension.pybindings.portable_lib"), self.threads)
        return ExecuTorchNetwork(content)

    def version(self) -> str:
        """Return the version of the package."""
        return version(PACKAGE)


def _first_cause(error: Exception) -> Exception:
    """Return what went wrong first: ExecuTorch wraps it in an exception that names its own step alone."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _in_order(model: nn.Module) -> nn.Module:
    """Copy a network, its tensors contiguous: XNNPACK's passes refuse weights that lie in memory channels last."""
    copy = duplicate(model)
    for tensor in (*copy.parameters(), *copy.buffers()):
        tensor.data = tensor.data.contiguous()
    return copy


def _set_threads(library: Any, threads: int) -> None:
    """Give the pool of the process so many threads.

    Raises:
        BadInputError: programs are loaded for another number, or ExecuTorch does not take it.
    """
    count = library._threadpool_get_thread_count()
    if count == threads:
        return
    gc.collect()
    if len(_LOADED):
        raise BadInputError(
            f"threads = {threads}: {len(_LOADED)} programs of ExecuTorch are loaded in this process for {count} "
            "threads, which all share; use one number, or another process"
        )
    with exporting():
        library._unsafe_reset_threadpool(threads)
    count = library._threadpool_get_thread_count()
    if count != threads:
        raise BadInputError(f"threads = {threads}: ExecuTorch runs on {count} here; set device.threads={count}")
