"""ExecuTorch without ExecuTorch: what is refused where it is not installed, and the pool of threads that all share."""

import importlib.util
from unittest.mock import Mock

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.runtime import executorch_runtime
from amcsearch.runtime.executorch_runtime import ExecuTorchRuntime


class Library:
    """The pool as ExecuTorch has it; it takes ``most`` threads at most."""

    def __init__(self, most: int = 8) -> None:
        self.count, self.most = 2, most

    def _threadpool_get_thread_count(self) -> int:
        return self.count

    def _unsafe_reset_threadpool(self, threads: int) -> None:
        self.count = min(threads, self.most)


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=r"'executorch' is not installed; pip install 'amcsearch\[executorch\]'"):
        ExecuTorchRuntime()


def test_its_provider_is_xnnpack_by_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Mock())
    assert {ExecuTorchRuntime(provider=name).provider for name in ("CPU", "cpu", "xnnpack")} == {"XNNPACK"}
    with pytest.raises(BadInputError, match=r"'CUDA' is not available; device\.runtime=executorch has: XNNPACK"):
        ExecuTorchRuntime(provider="CUDA")


def test_the_pool_changes_only_while_no_program_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    library, loaded = Library(), set()
    monkeypatch.setattr(executorch_runtime, "_LOADED", loaded)
    executorch_runtime._set_threads(library, 3)
    assert library.count == 3
    loaded.add("a program")
    executorch_runtime._set_threads(library, 3)
    with pytest.raises(BadInputError, match=r"threads = 1: 1 programs .* are loaded in this process for 3 threads"):
        executorch_runtime._set_threads(library, 1)
    assert library.count == 3


def test_threads_that_the_pool_does_not_take_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"threads = 9: ExecuTorch runs on 8 here; set device\.threads=8"):
        executorch_runtime._set_threads(Library(), 9)
