"""Profiles: which nodes ONNX Runtime executed, in order, and how long each took.

The profiler slows a model and counts whole microseconds: its times are shares, brought to true time on the host. A
node's time is its mean over the fastest quarter of the runs: those nothing else disturbed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

import numpy as np

from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.session import CPU, bound_call, open_session

if TYPE_CHECKING:  # older numpy lacks it
    from numpy.typing import NDArray

__all__ = ["RUNS_A_ROUND", "ExecutedNode", "executed_nodes", "profile_models"]

KERNEL = "_kernel_time"
RUNS_A_ROUND = 6
WARM_UP_RUNS = 2  # ``bound_call`` runs the model once; the first profiled runs also fault their memory in


class ExecutedNode(NamedTuple):
    """A node of the optimised graph as it was executed; shapes are those of its tensors, in the order of arguments."""

    name: str
    op_type: str
    us: float
    input_shapes: list[list[int]]
    output_shapes: list[list[int]]


def _runs(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The kernel events of each run, in order of execution."""
    runs: list[list[Mapping[str, Any]]] = [[]]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(KERNEL):
            runs[-1].append(event)
        elif event["name"] == "model_run":
            runs.append([])
    return runs


def _shapes(event: Mapping[str, Any], side: str) -> list[list[int]]:
    """Of ``[{"float": [1, 3, 8, 8]}, …]``, the dims."""
    found = event.get("args", {}).get(f"{side}_type_shape", [])
    return [[int(dim) for dim in dims] for one in found for dims in one.values()]


def executed_nodes(events: Sequence[Mapping[str, Any]], skip: int = WARM_UP_RUNS) -> list[ExecutedNode]:
    """The nodes of a profile of several runs, ``skip`` first runs left out.

    Raises:
        DeviceError: no run is left.
    """
    runs = [run for run in _runs(events) if run]
    whole = [run for run in runs[skip:] if len(run) == len(runs[skip])]
    if not whole:
        raise DeviceError(f"the profiler recorded {len(runs)} runs, more than {skip} are needed")
    durations = np.array([[float(event["dur"]) for event in run] for run in whole])  # (runs, nodes)
    fastest = np.argsort(durations.sum(axis=1), kind="stable")[: max(1, len(whole) // 4)]
    mean_us = durations[fastest].mean(axis=0)
    return [
        ExecutedNode(
            event["name"][: -len(KERNEL)],
            str(event.get("args", {}).get("op_name", "")),
            round(float(us), 4),
            _shapes(event, "input"),
            _shapes(event, "output"),
        )
        for event, us in zip(whole[0], mean_us)
    ]


def profile_models(
    models: Sequence[bytes],
    inputs: Sequence[NDArray[np.generic]],
    rounds: int,
    rng: np.random.Generator,
    threads: int = 1,
    provider: str = CPU,
) -> list[list[ExecutedNode]]:
    """Profile models in interleaved rounds, each model ``RUNS_A_ROUND`` times in a round, in a fresh random order.

    A spell of bad weather on a shared machine then spoils some runs of every model and not all runs of one.

    Raises:
        DeviceError: as ``open_session``.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefixes = [Path(folder) / f"model{i}" for i in range(len(models))]
        sessions = [open_session(m, threads, provider, profile=p) for m, p in zip(models, prefixes)]
        calls = [bound_call(session, x) for session, x in zip(sessions, inputs)]
        for _ in range(rounds):
            for i in rng.permutation(len(calls)):
                for _ in range(RUNS_A_ROUND):
                    calls[i]()
        found = []
        for session in sessions:
            path = Path(session.end_profiling())
            found.append(executed_nodes(json.loads(path.read_text())))
            path.unlink()
        return found
