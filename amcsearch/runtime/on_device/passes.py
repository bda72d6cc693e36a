"""Timing passes: blocks of models in rounds of samples beside their references; their optimised graphs before.

A shared device is undisturbed only now and then. So samples are short and spread over the whole run: a model's latency
is its fastest sample, the one nothing disturbed. (On a machine with busy neighbours the fastest samples of two passes
agreed to 0.3 % where medians differed by 30 %.) Disturbed rounds are repeated, up to twice the planned number.
"""

from __future__ import annotations

import base64
import zlib
from typing import Sequence

import numpy as np

from amcsearch.runtime.on_device.drift import DISTURBED
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import BLOCK_MODELS, MS_PER_S, WARMUP_MS, Part
from amcsearch.runtime.on_device.plan import Entry
from amcsearch.runtime.on_device.protobuf import without_data
from amcsearch.runtime.on_device.session import input_array, optimised_model
from amcsearch.runtime.on_device.timing import time_round, warm_up, without_gc

__all__ = ["call_overhead", "timing_pass"]

DIGITS = 7  # of a sample in ms: a tenth of a nanosecond


def call_overhead(part: Part, number: int) -> None:
    """Record what a call that computes next to nothing costs in pass ``number``: every network pays it once."""
    if number in part.done.overheads:
        return
    call = part.engine.call(part.plan.empty, [input_array((1, 1), "float32", None)])
    rng = np.random.default_rng(number)
    with without_gc():
        repeats, _ = warm_up(call, part.sample_ms, WARMUP_MS, part.clock)
        samples = [time_round([call], [repeats], rng, part.clock)[0] for _ in range(part.rounds)]
    part.write("overhead", {"pass": number, "samples_ms": [round(ms, DIGITS) for ms in samples]})


def timing_pass(part: Part, number: int, entries: Sequence[Entry]) -> bool:
    """Record what is missing of the optimised graphs and of pass ``number`` (from 1); False if time ran out.

    Raises:
        DeviceError: a reference cannot be run, or the result cannot be written.
    """
    done = part.done
    queue = [
        entry
        for entry in entries
        if entry.id not in done.failed
        and ((done.profiled and entry.id not in done.graphs) or (entry.timed and entry.id not in done.timings[number]))
    ]
    while queue:
        if part.seconds_left <= 0:
            return False
        block = part.pool.first_that_fit(queue, BLOCK_MODELS)
        queue = queue[len(block) :]
        for entry in block:
            _graph(part, entry)
        wanted = [e for e in block if e.timed and e.id not in done.failed and e.id not in done.timings[number]]
        if wanted and not _time_block(part, number, wanted):
            return False
    return True


def _graph(part: Part, entry: Entry) -> None:
    """Record the optimised graph without weights, compressed."""
    if entry.id in part.done.graphs or not part.done.profiled:
        return
    part.say(f"graph of {entry.id}")
    try:
        model = optimised_model(part.plan.model(entry), part.engine.threads, part.engine.provider)
    except DeviceError as error:
        part.fail(entry, error)
        return
    packed = base64.b64encode(zlib.compress(without_data(model), 9)).decode()
    part.write("graph", {"model": entry.id, "graph": packed})


def _time_block(part: Part, number: int, wanted: Sequence[Entry]) -> bool:
    """Time entries beside their references; False if time ran out for the last of them."""
    names = list(dict.fromkeys(entry.reference for entry in wanted))
    members = [part.plan.by_id[name] for name in names] + [entry for entry in wanted if entry.id not in names]
    with without_gc():
        ready, repeats, in_time = _warm_members(part, members, len(names))
        timed = [entry for entry in wanted if entry in ready]
        samples = _rounds(part, number, ready, repeats, names) if timed else []
    rows = {entry.id: [round(round_ms[i], DIGITS) for round_ms in samples] for i, entry in enumerate(ready)}
    for entry in timed:
        record = {"model": entry.id, "pass": number, "samples_ms": rows[entry.id]}
        part.write("timing", {**record, "reference": entry.reference, "reference_ms": rows[entry.reference]})
    for name in names if timed else []:
        _note_drift(part, number, name, timed)
    part.pool.release()
    return in_time


def _warm_members(part: Part, members: Sequence[Entry], references: int) -> tuple[list[Entry], list[int], bool]:
    """Open and warm members, as many as can be timed before the deadline; one besides the references at least.

    Returns:
        Those that can be run, how many calls make a sample of each, and whether time sufficed for all.
    """
    ready: list[Entry] = []
    repeats: list[int] = []
    seconds = 0.0
    for i, entry in enumerate(members):
        if i > references and seconds > part.seconds_left:
            return ready, repeats, False
        try:
            count, ms = warm_up(part.pool.call(entry), part.sample_ms, WARMUP_MS, part.clock)
        except DeviceError as error:
            part.fail(entry, error)
            continue
        ready.append(entry)
        repeats.append(count)
        seconds += part.rounds * (count + 1) * ms / MS_PER_S
    return ready, repeats, True


def _rounds(
    part: Part, number: int, members: Sequence[Entry], repeats: Sequence[int], names: Sequence[str]
) -> list[list[float]]:
    """Rounds of samples (rounds, members): as many quiet ones as planned, or twice as many in all.

    ``names`` are the references, which come first among the members.
    """
    calls = [part.pool.call(entry) for entry in members]
    rng = np.random.default_rng((part.seed, number, part.plan.entries.index(members[-1])))
    drift = part.done.drift
    drift.begin_block(names)
    action = f"pass {number} of {len(part.done.timings)}: {members[-1].id} and {len(members) - 1} beside it"
    rounds: list[list[float]] = []
    while len(rounds) < 2 * part.rounds:
        rounds.append(time_round(calls, repeats, rng, part.clock))
        drift.add(dict(zip(names, rounds[-1])))
        part.say(action, len(members) * min(len(rounds) / part.rounds, 1.0), names)
        if len(rounds) >= part.rounds and sum(drift.quiet_rounds(names)) >= part.rounds:
            break
    return rounds


def _note_drift(part: Part, number: int, name: str, timed: Sequence[Entry]) -> None:
    """Record a throttled block: one in which even the undisturbed samples of a reference were slow."""
    level, quiet = part.done.drift.level_ms(name), part.done.drift.quiet_ms(name)
    if level > DISTURBED * quiet:
        record = {"model": name, "pass": number, "models": [entry.id for entry in timed]}
        part.write("drift", {**record, "level_ms": level, "quiet_ms": quiet, "ratio": round(level / quiet, 4)})
