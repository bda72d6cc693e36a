"""The protocol of runtimes: what turns a network into a file, loads it on this machine, runs and times it.

ONNX Runtime is one runtime. Another one is a row of ``RUNTIMES``, or a class of the user's own that
``device.runtime: module:Class`` names; ``amcsearch.testing.RuntimeContract`` holds it to what is said here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.costs import Provenance
from amcsearch.graph import Batch
from amcsearch.runtime.export import FIXED, OnnxSettings
from amcsearch.runtime.loaded import LoadedNetwork
from amcsearch.runtime.on_device.engine import Engine
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.plan import DevicePlan, Entry
from amcsearch.runtime.on_device.provenance import ONNXRUNTIME, machine

__all__ = ["ONNX_SUFFIX", "Runtime", "RuntimeEngine"]

ONNX_SUFFIX: Final = ".onnx"


class Runtime(ABC):
    """Runs networks on this machine with so many threads by a provider, both as the section ``device`` says.

    ``name`` is what a table's provenance and a report call it; that of ``OnnxRuntime`` is taken. ``suffix`` is the
    ending of its files: the delivered network is ``pruned`` with it. ``dtypes`` are those of ``device.dtype`` in which
    it can compute.

    Args:
        threads: threads inside an operator.
        provider: what computes in the runtime: an execution provider, a backend or a delegate.

    Raises:
        BadInputError: fewer than one thread.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ONNX_SUFFIX
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def __init__(self, threads: int = 1, provider: str = "CPU") -> None:
        if threads < 1:
            raise BadInputError(f"threads = {threads}, must be at least 1")
        self.threads, self.provider = threads, provider

    @abstractmethod
    def exported(self, model: nn.Module, example: Batch | Tensor, settings: OnnxSettings = FIXED) -> bytes:
        """Return a network as the content of a file of this runtime; the module is unchanged.

        ``runtime.exported`` makes an ONNX file for a runtime that reads these.

        Args:
            model: any module.
            example: what it is called with. The sizes are the file's.
            settings: how an ONNX file is made; other files may ignore it.

        Raises:
            BadInputError: the network cannot be exported; says why.
        """

    @abstractmethod
    def load(self, file: Path | bytes) -> LoadedNetwork:
        """Load a file, or its content.

        Raises:
            BadInputError: the file cannot be read or run here.
        """

    @abstractmethod
    def version(self) -> str | None:
        """Return the version of the runtime, None where it has none.

        Raises:
            BadInputError: the runtime is not installed; says what to install.
        """

    @property
    def is_onnx_runtime(self) -> bool:
        """Whether it is ONNX Runtime, as ``Provenance.is_onnx_runtime`` says it of a table."""
        return self.name == ONNXRUNTIME

    @property
    def is_profiled(self) -> bool:
        """Whether it says which kernels it runs, and for how long; else a latency table is made of whole runs alone."""
        return False

    def provenance(self, batch: int, dtype: str = "float32") -> Provenance:
        """Return where, with what and how latencies are measured here.

        Raises:
            BadInputError: as ``version``.
        """
        setting = {"threads": self.threads, "batch": batch, "dtype": dtype, "provider": self.provider}
        return Provenance.from_mapping(
            {**machine(), "runtime": self.name, "runtime_version": self.version(), **setting}
        )


class _BoundCall:
    """Runs a network once; ``network`` is kept, for a runtime may count those that are loaded."""

    def __init__(self, network: LoadedNetwork, arrays: Sequence[NDArray[np.generic]]) -> None:
        self._network, self._run = network, network.bound_call(arrays)

    def __call__(self) -> None:
        self._run()


class RuntimeEngine(Engine):
    """A runtime as what runs a plan's models on this machine: whole runs alone, whose models are its own files."""

    is_profiled = False

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.threads, self.provider = runtime, runtime.threads, runtime.provider

    def call(self, model: bytes, inputs: Sequence[NDArray[np.generic]]) -> _BoundCall:
        """As ``Engine.call``."""
        try:
            return _BoundCall(self._runtime.load(model), inputs)
        except BadInputError as error:
            raise DeviceError(str(error)) from error

    def provenance(self, plan: DevicePlan) -> Mapping[str, object]:
        """As ``Engine.provenance``."""
        return self._runtime.provenance(int(plan.plan["batch"]), str(plan.plan["dtype"])).as_mapping()

    def elsewhere(self, plan: DevicePlan, entry: Entry) -> str | None:
        """As ``Engine.elsewhere``."""
        try:
            note = self._runtime.load(plan.model(entry)).elsewhere
        except BadInputError as error:
            raise DeviceError(str(error)) from error
        return note and f"network {entry.network}: {note}"
