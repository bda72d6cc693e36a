import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from amcsearch.measure.kit.kit import KitModel, KitPlan, device_plan, write_kit
from amcsearch.runtime.on_device import __main__ as command
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.plan import InputSpec
from amcsearch.runtime.on_device.program import run
from amcsearch.runtime.on_device.records import Journal, encoded
from amcsearch.runtime.on_device.timing import Clock

ONE = Settings()


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def measured(path):
    """What a file holds besides headers and ends, which every part writes."""
    found = [r for r in records(path) if r["kind"] not in ("header", "end")]
    return sorted((r["kind"], r.get("model", ""), r.get("pass", 0)) for r in found)


def of_kind(path, kind):
    return [record for record in records(path) if record["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_plan, fake_clock):
    """A small plan and the file of its unbroken run."""
    plan, path = device_plan(small_plan()), tmp_path_factory.mktemp("whole") / "r.jsonl"
    run(plan, path, ONE, clock=fake_clock())
    return plan, path


def test_an_unbroken_run_holds_everything_once(whole):
    _, path = whole
    names = ("w16", "w32", "w64")
    wanted = [("graph", n, 0) for n in names] + [("profile", n, 0) for n in names]
    wanted += [("timing", n, k) for n in names for k in (1, 2)] + [("overhead", "", k) for k in (1, 2)]
    assert measured(path) == sorted(wanted)
    assert (records(path)[0]["kind"], records(path)[-1]["kind"]) == ("header", "end")
    (end,) = of_kind(path, "end")
    assert end["complete"]
    assert end["drift"] == {"rounds": 4, "disturbed_share": 0.0, "largest": 1.0}


def test_a_first_pass_and_profiles_come_before_further_passes(whole):
    kinds = [(r["kind"], r.get("pass")) for r in records(whole[1])]
    last_first = max(i for i, k in enumerate(kinds) if k == ("timing", 1))
    profiles = [i for i, k in enumerate(kinds) if k[0] == "profile"]
    first_second = min(i for i, k in enumerate(kinds) if k == ("timing", 2))
    assert last_first < min(profiles) <= max(profiles) < first_second


def test_a_run_killed_at_any_record_ends_as_an_unbroken_one(tmp_path, whole, fake_clock):
    plan, path = whole
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        broken = tmp_path / f"{kept}.jsonl"
        broken.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        end = run(plan, broken, ONE, clock=fake_clock())
        assert end["complete"]
        assert [note.rpartition(": ")[2] for note in end["notes"]] == [f"line {kept + 1} is torn and was left out"]
        assert measured(broken) == measured(path)
        assert broken.read_bytes().startswith(b"".join(lines[:kept]))
        assert [h["part"] for h in of_kind(broken, "header")] == list(range(1, 2 + (kept > 0)))


KILLED = """
import os, signal, sys
from pathlib import Path
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.plan import read_plan
from amcsearch.runtime.on_device.program import run
from amcsearch.runtime.on_device.records import Journal
left = int(sys.argv[3])
def write(file, line):
    global left
    left -= 1
    if left:
        return os.write(file, line)
    os.write(file, line[: len(line) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
run(read_plan(Path(sys.argv[1])), Journal(Path(sys.argv[2]), write=write), Settings())
"""


def test_kill_9_in_the_middle_of_a_write(tmp_path, small_plan, whole):
    kit, out = tmp_path / "kit.pyz", tmp_path / "r.jsonl"
    write_kit(small_plan(), kit)
    for writes in (6, 7):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(kit), str(out), str(writes)], check=False)
        assert killed.returncode == -signal.SIGKILL
    assert subprocess.run([sys.executable, str(kit), "-o", str(out)], capture_output=True, check=False).returncode == 0
    # real time passes here: a block that a busy neighbour slowed is noted as drift and timed again; that nothing is
    # measured twice otherwise is held above, by a clock that nothing disturbs
    assert sorted({one for one in measured(out) if one[0] != "drift"}) == measured(whole[1])


def test_a_run_that_is_complete_is_left_as_it_is(tmp_path, whole):
    plan, path = whole
    copy = tmp_path / "r"
    copy.write_bytes(path.read_bytes())
    assert run(plan, copy, ONE)["complete"]
    assert copy.read_bytes() == path.read_bytes()


def test_another_plan_or_device_is_refused_with_both_values(tmp_path, whole, small_plan):
    plan, path = whole
    header, *others = records(path)
    other = device_plan(small_plan(info={"another": True}))
    with pytest.raises(DeviceError, match=f"plan_hash = {plan.hash}, this run has {other.hash}; write to another"):
        run(other, path, ONE)
    with pytest.raises(DeviceError, match="threads = 1, this run has 2"):
        run(plan, path, Settings(threads=2))
    aged = {**header, "provenance": {**header["provenance"], "ort_version": "0.1"}}
    (tmp_path / "r").write_bytes(b"".join(map(encoded, [aged, *others])))
    with pytest.raises(DeviceError, match=r"ort_version = 0.1, this run has \d"):
        run(plan, tmp_path / "r", ONE)


def test_a_full_disk_in_mid_run_loses_nothing_that_was_written(tmp_path, whole, fake_clock):
    plan, path = whole
    room = [sum(map(len, path.read_bytes().splitlines(keepends=True)[:6])) + 100]

    def write(file, line):
        done = os.write(file, line[: room[0]])
        room[0] -= done
        if not done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return done

    out = tmp_path / "r"
    with pytest.raises(DeviceError, match=r"No space left on device; \d records are safe"):
        run(plan, Journal(out, write=write), ONE, clock=fake_clock())
    kept = records(out)
    assert 1 < len(kept) < len(records(path))
    assert run(plan, out, ONE, clock=fake_clock())["notes"] == []
    assert measured(out) == measured(path)


class InterruptedClock(Clock):
    def __init__(self, calls):
        self.calls = calls

    def sample_ms(self, call, repeats):
        self.calls -= 1
        if not self.calls:
            raise KeyboardInterrupt
        return super().sample_ms(call, repeats)


def test_an_interrupted_run_goes_on(tmp_path, whole, fake_clock):
    with pytest.raises(KeyboardInterrupt):
        run(whole[0], tmp_path / "r", ONE, clock=InterruptedClock(60))
    assert run(whole[0], tmp_path / "r", ONE, clock=fake_clock())["complete"]
    assert measured(tmp_path / "r") == measured(whole[1])


def test_the_exit_code_of_an_interrupted_run_is_130(tmp_path, small_plan, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    write_kit(small_plan(), tmp_path / "kit.pyz")
    monkeypatch.setattr(command, "run", interrupted)
    assert command.main(tmp_path / "kit.pyz", ["-o", str(tmp_path / "r")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_when_time_is_short_the_last_models_are_left_out(tmp_path, small_plan, fake_clock):
    """The overhead takes 0.4 s, to warm a model 0.2 s, its rounds are estimated at 0.4 s: two models fit into 1.5 s."""
    plan, out = device_plan(small_plan((16, 32, 48))), tmp_path / "r"
    end = run(plan, out, Settings(minutes=1.5 / 60), clock=fake_clock())
    assert not end["complete"]
    assert end["coverage"]["timed"] == [2, 0]
    assert end["coverage"]["left_out"] == ["w32", "w48"]
    assert end["coverage"]["profiled"] == 0
    assert run(plan, out, ONE, clock=fake_clock())["coverage"]["timed"] == [4, 4]
    assert len({(r["model"], r["pass"]) for r in of_kind(out, "timing")}) == len(of_kind(out, "timing")) == 8


def test_without_time_for_profiles_they_are_left_out(tmp_path, small_plan, fake_clock):
    """The first pass ends after 1.6 s; a profile of 12 runs of 100 ms is estimated at 2.4 s."""
    end = run(device_plan(small_plan()), tmp_path / "r", Settings(minutes=2 / 60), clock=fake_clock())
    assert (end["coverage"]["timed"], end["coverage"]["profiled"]) == ([3, 0], 0)
    assert end["coverage"]["incomplete"] == ["w64", "w16", "w32"]
    assert end["coverage"]["left_out"] == []


def throttled(start, stop, factor=1.3):
    return lambda now: factor if start <= now < stop else 1.0


def test_disturbed_rounds_are_repeated_but_not_for_ever(tmp_path, small_plan, fake_clock):
    """Rounds begin at 1.2 s and take 0.3 s, 0.39 s disturbed: the third and fourth, then all but the first."""
    plan = device_plan(small_plan(rounds=4, passes=1))
    run(plan, tmp_path / "short", ONE, clock=fake_clock(throttled(1.75, 2.5)))
    (timing,) = [r for r in of_kind(tmp_path / "short", "timing") if r["model"] == "w64"]
    assert len(timing["samples_ms"]) == 6
    assert timing["reference_ms"] == timing["samples_ms"] == [100.0, 100.0, 130.0, 130.0, 100.0, 100.0]
    end = run(plan, tmp_path / "long", ONE, clock=fake_clock(throttled(1.45, 1e9)))
    (timing,) = [r for r in of_kind(tmp_path / "long", "timing") if r["model"] == "w16"]
    assert len(timing["samples_ms"]) == len(timing["reference_ms"]) == 8
    assert end["drift"]["disturbed_share"] == 7 / 8
    assert of_kind(tmp_path / "short", "drift") == []


def test_a_throttled_device_is_recorded(tmp_path, small_plan, fake_clock):
    """The second pass, from 1.6 s on, is slow throughout."""
    end = run(device_plan(small_plan()), tmp_path / "r", ONE, clock=fake_clock(throttled(1.55, 1e9)))
    (drift,) = of_kind(tmp_path / "r", "drift")
    assert (drift["model"], drift["pass"], drift["models"]) == ("w64", 2, ["w64", "w16", "w32"])
    assert (drift["level_ms"], drift["quiet_ms"], drift["ratio"]) == (130.0, 100.0, 1.3)
    assert end["drift"] == {"rounds": 6, "disturbed_share": round(4 / 6, 4), "largest": 1.3}


def odd_model():
    """One node of a kind that no runtime knows."""
    node = helper.make_node("Abacus", ["x"], ["y"], domain="nowhere")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 16, 8, 8]) for n in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def test_a_model_that_cannot_run_is_recorded_and_left_out(tmp_path, small_plan, fake_clock):
    plan = small_plan()
    plan = replace(plan, models=(*plan.models, KitModel("odd", odd_model(), "net", "train")))
    end = run(device_plan(plan), tmp_path / "r", ONE, clock=fake_clock())
    assert end["complete"]
    assert end["coverage"]["failed"] == ["odd"]
    (failed,) = of_kind(tmp_path / "r", "failed")
    assert "Abacus" in failed["reason"]


def test_without_its_reference_nothing_is_measured(tmp_path, fake_clock):
    models = (KitModel("odd", odd_model(), "net", "reference"),)
    plan = device_plan(KitPlan(models, 1, "float32", {"net": InputSpec((1, 16, 8, 8))}))
    with pytest.raises(DeviceError, match="reference model odd: ONNX Runtime cannot open"):
        run(plan, tmp_path / "r", ONE, clock=fake_clock())


def test_a_model_may_be_asked_for_its_graph_alone(tmp_path, conv_model, small_plan, fake_clock):
    plan = small_plan()
    alone = KitModel("alone", conv_model(24), "net", "lowering", timed=False, profiled=False)
    only_timed = KitModel("timed", conv_model(24), "net", "pair", profiled=False)
    run(device_plan(replace(plan, models=(alone, *plan.models, only_timed))), tmp_path / "r", ONE, clock=fake_clock())
    kinds = {name: [k for k, model, _ in measured(tmp_path / "r") if model == name] for name in ("alone", "timed")}
    assert kinds == {"alone": ["graph"], "timed": ["graph", "timing", "timing"]}


def test_little_memory_means_small_blocks_beside_the_reference(tmp_path, small_plan, fake_clock):
    plan = device_plan(small_plan())
    run(plan, tmp_path / "r", Settings(memory=1), clock=fake_clock())
    first = [r for r in of_kind(tmp_path / "r", "timing") if r["pass"] == 1]
    assert [r["model"] for r in first] == ["w64", "w16", "w32"]
    kinds = [r["kind"] for r in records(tmp_path / "r") if r["kind"] in ("graph", "timing")]
    assert kinds[:6] == ["graph", "timing"] * 3


def test_networks_are_timed_each_beside_its_own_reference(tmp_path, conv_model, small_plan, fake_clock):
    plan = small_plan(passes=1)
    second = [KitModel(n, conv_model(w), "second", r) for n, w, r in (("v8", 8, "train"), ("v64", 64, "reference"))]
    both = {"net": plan.inputs["net"], "second": InputSpec((1, 16, 8, 8))}
    run(
        device_plan(replace(plan, models=(*plan.models, *second), inputs=both)), tmp_path / "r", ONE, clock=fake_clock()
    )
    references = {r["model"]: r["reference"] for r in of_kind(tmp_path / "r", "timing")}
    assert references == {"w64": "w64", "w16": "w64", "w32": "w64", "v8": "v64", "v64": "v64"}


def test_several_threads_and_integer_inputs(tmp_path):
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"], name="gather")]
    table = helper.make_tensor("table", TensorProto.FLOAT, [512, 16], [1.0] * 512 * 16)
    x = helper.make_tensor_value_info("x", TensorProto.INT64, [2, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8, 16])
    graph = helper.make_graph(nodes, "g", [x], [y], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plan = KitPlan(
        (KitModel("m", model.SerializeToString(), "net", "reference"),),
        batch=2,
        dtype="int64",
        inputs={"net": InputSpec((2, 8), "int64", 512)},
        passes=1,
        rounds=2,
        sample_ms=0.01,
        profile_rounds=1,
    )
    assert run(device_plan(plan), tmp_path / "r", Settings(threads=2, provider="cpu"))["complete"]
    provenance = records(tmp_path / "r")[0]["provenance"]
    assert (provenance["threads"], provenance["batch"], provenance["dtype"]) == (2, 2, "int64")
    assert provenance["provider"] == "CPUExecutionProvider"
    assert onnx.load_from_string(plan.models[0].skeleton).graph.initializer == []
