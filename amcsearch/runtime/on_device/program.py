"""The measuring schedule: every model once in order of priority, then profiles, then more passes over all.

    pass 1: for each block of models: optimised graphs, then rounds of samples beside the references
    profiles of every model
    pass 2 … K: rounds of samples again

Whatever was measured is on the disk when its block ends; a broken-off run goes on there.

A profile says which nodes ONNX Runtime executed, in order, and how long each took. The profiler slows a model and
counts whole microseconds: its durations are shares, brought to true time on the host. A node's duration is its mean
over the fastest quarter of the runs, which nothing else disturbed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

import numpy as np

from amcsearch.runtime.on_device.done import check_same_run
from amcsearch.runtime.on_device.engine import Engine
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import BLOCK_MODELS, MS_PER_S, Part, Report, Settings
from amcsearch.runtime.on_device.passes import call_overhead, timing_pass
from amcsearch.runtime.on_device.plan import KIT_VERSION, DevicePlan, Entry
from amcsearch.runtime.on_device.provenance import load, temperatures_c
from amcsearch.runtime.on_device.providers import CPU
from amcsearch.runtime.on_device.records import Journal
from amcsearch.runtime.on_device.session import bound_call, open_session
from amcsearch.runtime.on_device.timing import Clock

if TYPE_CHECKING:  # older numpy lacks it
    from numpy.typing import NDArray

__all__ = ["RUNS_A_ROUND", "ExecutedNode", "executed_nodes", "profile_models", "run"]

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
    shapes = event.get("args", {}).get(f"{side}_type_shape", [])
    return [[int(dim) for dim in dims] for tensor in shapes for dims in tensor.values()]


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
    inputs: Sequence[Sequence[NDArray[np.generic]]],
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
        profiles = []
        for session in sessions:
            path = Path(session.end_profiling())
            profiles.append(executed_nodes(json.loads(path.read_text())))
            path.unlink()
        return profiles


PROFILE_INFLATION = 2.0  # of a run by the profiler, for the estimate of its time


def _header(part: Part) -> dict[str, Any]:
    notes = [part.engine.elsewhere(part.plan, entry) for entry in part.plan.entries if entry.id == entry.reference]
    return {
        "part": part.done.parts + 1,
        "kit_version": KIT_VERSION,
        "plan_hash": part.plan.hash,
        "provenance": part.engine.provenance(part.plan),
        "elsewhere": [note for note in notes if note is not None],
        "plan": part.plan.described(),
    }


def _profiled_in_time(part: Part, block: Sequence[Entry]) -> list[Entry]:
    left_ms, chosen = MS_PER_S * part.seconds_left, []
    for entry in block:
        ms = part.done.fastest_ms.get(entry.id, part.done.fastest_ms.get(entry.reference, 1.0))
        left_ms -= PROFILE_INFLATION * RUNS_A_ROUND * part.profile_rounds * ms
        if left_ms < 0:
            break
        chosen.append(entry)
    return chosen


def _profile_block(part: Part, block: Sequence[Entry]) -> None:
    part.say(f"profile of {block[0].id} and {len(block) - 1} beside it")
    rng = np.random.default_rng((part.seed, part.plan.entries.index(block[0])))
    models = [part.plan.model(entry) for entry in block]
    inputs = [part.pool.inputs(entry.network) for entry in block]
    try:
        profiles = profile_models(models, inputs, part.profile_rounds, rng, part.engine.threads, part.engine.provider)
    except DeviceError as error:
        if len(block) == 1:
            part.fail(block[0], error)
        for entry in block if len(block) > 1 else []:  # find out which of them it is
            _profile_block(part, [entry])
        return
    for entry, nodes in zip(block, profiles):
        part.write("profile", {"model": entry.id, "nodes": [list(node) for node in nodes]})


def _profiles(part: Part) -> bool:
    if not part.done.profiled:
        return True
    skipped = part.done.profiles | part.done.failed
    queue = [entry for entry in part.plan.entries if entry.profiled and entry.id not in skipped]
    while queue:
        block = _profiled_in_time(part, part.pool.first_that_fit(queue, BLOCK_MODELS))
        if not block:
            return False
        _profile_block(part, block)
        queue = queue[len(block) :]
    return True


def _measure(part: Part) -> None:
    first, *others = part.done.timings
    call_overhead(part, first)
    in_time = timing_pass(part, first, part.plan.entries) and _profiles(part)
    for number in others:
        if in_time:
            call_overhead(part, number)
            in_time = timing_pass(part, number, [entry for entry in part.plan.entries if entry.timed])


def _end(part: Part) -> dict[str, Any]:
    coverage = part.done.coverage()
    return {
        "part": part.done.parts,
        "complete": not coverage["incomplete"],
        "coverage": coverage,
        "drift": part.done.drift.summary(),
        "seconds": round(part.seconds, 1),
        "load": load(),
        "temperatures_c": temperatures_c(),
    }


def run(
    plan: DevicePlan,
    out: Path | Journal,
    settings: Settings,
    report: Report | None = None,
    clock: Clock | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Measure what the plan asks for and the result does not hold yet, and append it.

    Args:
        plan: what to measure.
        out: the result file, new or begun by the same plan on the same device; or a journal of it.
        settings: threads, provider, time.
        report: see ``Report``; nothing is said if None.
        clock: what tells time; the device's if None.
        engine: what runs the models; ONNX Runtime with the threads and provider of ``settings`` if None.

    Returns:
        The end record (``complete``, ``coverage``, ``drift``, ``seconds``) with ``notes`` of repairs to the file and of
        nodes that run on another provider.

    Raises:
        DeviceError: the file is of another run or cannot be written, or the provider or a reference cannot run.
    """
    engine = engine or Engine(settings.threads, settings.provider)
    journal = out if isinstance(out, Journal) else Journal(out)
    try:
        part = Part(plan, journal, settings, engine, clock or Clock(), report)
        header = _header(part)
        if journal.records:
            check_same_run(journal.records[0], header)
        if not (journal.records and journal.records[-1]["kind"] == "end" and journal.records[-1]["complete"]):
            part.write("header", header)
            _measure(part)
            part.write("end", _end(part))
        return {**journal.records[-1], "notes": [*journal.notes, *header["elsewhere"]]}
    finally:
        journal.close()
