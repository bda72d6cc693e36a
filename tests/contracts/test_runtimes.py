"""Every runtime that needs no further package keeps the promises of a runtime, and so does one of a user's own."""

from pathlib import Path

import pytest

from amcsearch.config import pick
from amcsearch.runtime import RUNTIMES, OnnxRuntime, Runtime
from amcsearch.testing import RuntimeContract

EAGER = Path(__file__).parents[1] / "eager_runtime.py"


class TestOnnxRuntime(RuntimeContract):
    def make(self) -> Runtime:
        return OnnxRuntime()


@pytest.mark.usefixtures("openvino")
class TestOpenVinoProvider(RuntimeContract):
    def make(self) -> Runtime:
        return OnnxRuntime(provider="OpenVINO")


class TestOfOnesOwn(RuntimeContract):
    def make(self) -> Runtime:
        return pick(RUNTIMES, f"{EAGER}:EagerRuntime", "device.runtime")()
