"""ONNX Runtime as a runtime: any execution provider, the CPU's alone with a profile of its kernels."""

from pathlib import Path
from typing import ClassVar

import onnxruntime as ort
from torch import Tensor, nn

from amcsearch.costs import Provenance
from amcsearch.graph import Batch
from amcsearch.runtime.base import Runtime
from amcsearch.runtime.export import FIXED, OnnxSettings, exported
from amcsearch.runtime.on_device.provenance import ONNXRUNTIME
from amcsearch.runtime.on_device.providers import full_provider_name, is_profiled
from amcsearch.runtime.session import OnnxNetwork, provenance

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Runtime):
    """ONNX Runtime, by any of its execution providers."""

    name: ClassVar[str] = ONNXRUNTIME
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "int8")

    def exported(self, model: nn.Module, example: Batch | Tensor, settings: OnnxSettings = FIXED) -> bytes:
        """Return the network as an ONNX file. Raises as ``runtime.exported``."""
        return exported(model, example, settings)

    def load(self, file: Path | bytes) -> OnnxNetwork:
        """Open a session of an ONNX file. Raises as ``make_session``."""
        return OnnxNetwork(file, self.threads, self.provider)

    def version(self) -> str:
        """Return ``onnxruntime.__version__``."""
        return str(ort.__version__)

    @property
    def is_profiled(self) -> bool:
        """Whether its provider is the CPU's."""
        return is_profiled(full_provider_name(self.provider))

    def provenance(self, batch: int, dtype: str = "float32") -> Provenance:
        """Return where, with what and how latencies are measured here. Raises as ``session.provenance``."""
        return provenance(self.threads, batch, dtype, self.provider)
