"""Freed memory is kept while a job runs; seen in a process of its own, by the pages that the system clears anew."""

import os
import subprocess
import sys

import pytest

from amcsearch.core import memory
from amcsearch.core.memory import keep_freed_memory, memory_kept

SCRIPT = """
import resource
from amcsearch.core.memory import give_back_freed_memory, memory_kept

def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

with memory_kept():
    print(faults(), faults())
    give_back_freed_memory()
    print(faults())
print(faults(), faults())
"""


def faults(**environment: str) -> list[int]:
    """Page faults of five allocations of 64 MiB: two, one after freed memory went back, and two after the job."""
    usual = {key: value for key, value in os.environ.items() if key not in memory._SET_BY_USER}
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, env=usual | environment, capture_output=True, text=True, check=True).stdout
    return list(map(int, output.split()))


@pytest.mark.skipif(memory._glibc() is None, reason="not glibc")
def test_freed_memory_is_used_again_inside_and_given_back_after() -> None:
    first, second, *others = faults()
    assert second < first / 8
    assert min(others) > first / 2


@pytest.mark.skipif(memory._glibc() is None, reason="not glibc")
def test_settings_of_the_users_c_library_stay() -> None:
    first, *others = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert min(others) > first / 2


def test_nothing_is_done_where_the_library_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    with memory_kept():
        assert memory._glibc() is None
