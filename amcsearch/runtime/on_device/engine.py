"""What runs the models of a plan: ONNX Runtime by one of its providers. The host has another for its other runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Sequence

from amcsearch.runtime.on_device.plan import DevicePlan, Entry
from amcsearch.runtime.on_device.protobuf import nchwc_block
from amcsearch.runtime.on_device.provenance import provenance
from amcsearch.runtime.on_device.providers import CPU, elsewhere, is_profiled, provider_name
from amcsearch.runtime.on_device.session import Call, bound_call, open_session, optimised_model

if TYPE_CHECKING:  # older numpy lacks it
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine"]


class Engine:
    """ONNX Runtime on this device.

    Args:
        threads: threads inside an operator.
        provider: execution provider, by its name with or without its ending.

    Raises:
        DeviceError: there is no such provider here.
    """

    def __init__(self, threads: int, provider: str) -> None:
        self.threads, self.provider = threads, provider_name(provider)
        self.is_profiled = is_profiled(self.provider)

    def call(self, model: bytes, inputs: Sequence[NDArray[np.generic]]) -> Call:
        """A call that runs a model of the plan once on its inputs.

        Raises:
            DeviceError: the model cannot be opened or run.
        """
        return bound_call(open_session(model, self.threads, self.provider), inputs)

    def provenance(self, plan: DevicePlan) -> Mapping[str, Any]:
        """Where, with what and how the plan is measured.

        Raises:
            DeviceError: not even the plan's empty model can be opened.
        """
        block = nchwc_block(optimised_model(plan.probe, self.threads, self.provider)) if self.is_profiled else 0
        session = open_session(plan.empty, self.threads, self.provider)
        options = session.get_provider_options().get(self.provider, {})
        batch, dtype = int(plan.plan["batch"]), str(plan.plan["dtype"])
        return provenance(self.threads, batch, dtype, self.provider, block, options)

    def elsewhere(self, plan: DevicePlan, entry: Entry) -> str | None:
        """What of a model the provider leaves to others, in a sentence; None where it runs all of it.

        Raises:
            DeviceError: the model cannot be opened.
        """
        if self.provider == CPU:
            return None
        left = elsewhere(open_session(plan.model(entry), self.threads, self.provider), self.provider)
        if left is None:
            return f"network {entry.network}: this onnxruntime cannot say which nodes {self.provider} runs"
        return left.note(self.provider, f"network {entry.network}") if left.nodes else None
