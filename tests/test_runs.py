"""The run folder: whole files, one process, clear refusals, and nothing lost to a kill."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import optuna
import pandas as pd
import pytest

from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation, Trial, TrialState
from amcsearch.runs.documents import ConfigFile
from amcsearch.runs.files import replacing
from amcsearch.runs.folder import RunFolder
from amcsearch.runs.rows import TRIAL_COLUMNS, trial_rows

CONFIG = "name: x\nseed: 0\n"


def create(path, text=CONFIG, digest="abc123", resume=False):
    return RunFolder.create(path, text, digest, resume=resume)


def refused(*args, **kwargs) -> str:
    with pytest.raises(BadInputError) as caught:
        create(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trial(number=0, reward=-0.1):
    policy = PruningPolicy({"b": 8, "a": 4})
    cost = Cost(macs=1e6, params=1e3, latency_ms=0.5)
    return Trial(number, "ddpg", 7, TrialState.COMPLETE, policy, Evaluation(0.9, 0.3, 0.25), cost, reward)


def test_a_new_run_holds_its_configuration(tmp_path):
    with create(tmp_path / "runs" / "one") as run:
        assert run.config_yaml.read_text() == "# configuration abc123\nname: x\nseed: 0\n"
        assert run.study_db == tmp_path / "runs" / "one" / "study.db"
        assert run.read_config() == ConfigFile("# configuration abc123\nname: x\nseed: 0\n", "abc123", "x")
        assert run.report_html == tmp_path / "runs" / "one" / "report.html"
    assert RunFolder.open(tmp_path / "runs" / "one").path == run.path


def test_what_was_chosen_stands_above_the_configuration_and_stays_there(tmp_path):
    with create(tmp_path) as run:
        run.complete_config("name: x\nseed: 0\nselector: obc\n", "fed987", "obc, by default: it fits")
        text = "# configuration fed987\n# selection: obc, by default: it fits\nname: x\nseed: 0\nselector: obc\n"
        assert run.read_config() == ConfigFile(text, "fed987", "x", "obc, by default: it fits")
        run.write_policy(PruningPolicy({"a": 4}))
    assert "where there is now 'nothing'" in refused(tmp_path, CONFIG, "abc123", resume=True)
    run = RunFolder.create(tmp_path, CONFIG + "epochs: 3\n", "fed987", resume=True)
    assert run.read_config().selection == "obc, by default: it fits"
    run.close()


def test_a_second_run_needs_resume_and_the_same_configuration(tmp_path):
    with create(tmp_path) as run:
        run.write_policy(PruningPolicy({"a": 4}))
    assert "holds a run already; continue it with --resume" in refused(tmp_path)
    create(tmp_path, resume=True).close()
    message = refused(tmp_path, "name: x\nseed: 1\n", "def456", resume=True)
    assert "another configuration: it had 'seed: 0' where there is now 'seed: 1'" in message
    assert "a file that it names has changed" in refused(tmp_path, CONFIG, "def456", resume=True)
    assert (tmp_path / "config.yaml").read_text().endswith("seed: 0\n")


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_computed_nothing_begins_anew(tmp_path, killed):
    with create(tmp_path) as run:
        run.append_log({"phase": "costs"})
        run.write_json(run.identity_json, {})
        if killed:  # after the tables of the study were made, before its first trial
            optuna.create_study(storage=f"sqlite:///{run.study_db}", study_name="x")
    with create(tmp_path, "name: y\n", "def456") as run:
        assert run.read_config().name == "y"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml"]


def test_a_study_with_a_trial_is_never_begun_anew(tmp_path):
    with create(tmp_path) as run:
        study = optuna.create_study(storage=f"sqlite:///{run.study_db}", study_name="x")
        study.add_trial(optuna.trial.create_trial(value=1.0))
    assert "holds a run already" in refused(tmp_path)
    run.study_db.write_bytes(b"no database")
    assert "holds a run already" in refused(tmp_path)


def break_off(folder, work, resume=False):
    with create(folder, resume=resume) as run:
        work(run)
        raise BadInputError("refused")


def test_a_run_that_breaks_off_before_work_leaves_nothing(tmp_path):
    (tmp_path / "kept").mkdir()
    for folder in ("new", "runs/deep/new", "kept"):
        with pytest.raises(BadInputError):
            break_off(tmp_path / folder, lambda run: run.append_log({"phase": "costs"}))
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_a_run_that_breaks_off_keeps_what_was_computed_or_was_there(tmp_path):
    with pytest.raises(BadInputError):
        break_off(tmp_path / "computed", lambda run: run.training_state.write_bytes(b"an epoch"))
    assert (tmp_path / "computed" / "config.yaml").exists()
    create(tmp_path / "before").close()
    with pytest.raises(BadInputError):
        break_off(tmp_path / "before", lambda run: None, resume=True)
    assert (tmp_path / "before" / "config.yaml").exists()


def test_resume_begins_what_is_not_there(tmp_path):
    with create(tmp_path / "new", resume=True) as run:
        assert run.config_yaml.exists()


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    assert "holds other files" in refused(tmp_path)
    with pytest.raises(BadInputError, match="is no run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(BadInputError, match="is no run folder"):
        RunFolder.open(tmp_path / "nowhere")


def test_an_empty_mounted_volume_is_a_new_run(tmp_path):
    (tmp_path / "lost+found").mkdir()
    create(tmp_path).close()


def test_one_process_at_a_time(tmp_path):
    with create(tmp_path):
        message = refused(tmp_path, resume=True)
        assert f"in use by process {os.getpid()}" in message
        RunFolder.open(tmp_path)  # looking is always possible
    create(tmp_path, resume=True).close()


def test_a_refused_run_gives_its_lock_back(tmp_path):
    create(tmp_path).close()
    refused(tmp_path, digest="def456", resume=True)
    create(tmp_path, resume=True).close()


def test_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys, pathlib; from amcsearch.runs import RunFolder\n"
        "run = RunFolder.create(pathlib.Path(sys.argv[1]), 'name: x\\n', 'abc123', resume=False)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        assert f"in use by process {process.pid}" in refused(tmp_path, resume=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        create(tmp_path, resume=True).close()


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(tmp_path / "file")
    assert "cannot write" in refused(tmp_path / "file" / "below")


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    with create(tmp_path) as run:
        run.write_json(run.summary_json, {"a": 1})

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        for write in (
            lambda: run.write_json(run.summary_json, {"a": 2}),
            lambda: run.append_log({"a": 2}),
            lambda: run.write_report(""),
        ):
            with pytest.raises(BadInputError, match=r"cannot write .*: No space left on device"):
                write()
    assert json.loads(run.summary_json.read_text()) == {"a": 1}
    assert not run.report_html.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".onnx"
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_log_grows_by_lines_and_mends_a_torn_one(tmp_path):
    with create(tmp_path) as run:
        run.append_log({"phase": "search", "done": np.int64(3)})
        with run.log_jsonl.open("a") as stream:
            stream.write('{"torn": ')
        run.append_log({"phase": "verify"})
    first, torn, last = run.log_jsonl.read_text().splitlines()
    assert json.loads(first)["done"] == 3
    assert list(json.loads(last)) == ["time", "phase"]
    assert torn == '{"torn": '


def test_trials_and_front_have_the_columns_of_the_design(tmp_path):
    columns = ["number", "agent", "seed", "state", "reward", "accuracy", "loss", "macs", "params", "latency_ms"]
    columns += ["energy_mj", "seconds", "policy"]
    assert list(TRIAL_COLUMNS) == columns
    with create(tmp_path) as run:
        run.write_pareto([trial(0), trial(3, -math.inf)])
        frame = pd.read_csv(run.pareto_csv)
        run.write_trials([trial(0), trial(1), trial(2)])
        assert len(pd.read_csv(run.trials_csv)) == 3
        run.write_trials([])
        assert run.trials_csv.read_text().strip().split(",") == columns
    assert list(frame.columns) == columns
    assert frame["reward"].tolist() == [-0.1, -math.inf]
    assert PruningPolicy.from_json(frame["policy"][0]) == trial().policy
    assert frame["energy_mj"].isna().all()


def test_summaries_and_policies_are_plain_json(tmp_path):
    with create(tmp_path) as run:
        values = {"a": np.float64(0.5), "b": (np.int64(2), math.nan), "c": np.array([1, 2]), "d": tmp_path}
        run.write_json(run.summary_json, values)
        run.write_policy(trial().policy)
    assert json.loads(run.summary_json.read_text()) == {"a": 0.5, "b": [2, None], "c": [1, 2], "d": str(tmp_path)}
    assert PruningPolicy.read(run.policy_json) == trial().policy


def test_what_a_kill_left_half_written_is_swept_away(tmp_path):
    create(tmp_path).close()
    (tmp_path / ".summary.123.json").write_text("half")
    (tmp_path / ".hidden").write_text("not ours")
    create(tmp_path, resume=True).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", ".lock", "config.yaml"]


def test_costs_of_ones_own_are_columns_after_the_four() -> None:
    evaluation, policy = Evaluation(0.9, 0.1, 0.5), PruningPolicy({"g": 4})
    costs = Cost(macs=1e6), Cost({"macs": 1e6, "mib": 2.5})
    trials = [Trial(i, "agent", 0, TrialState.COMPLETE, policy, evaluation, c, 0.9) for i, c in enumerate(costs)]
    rows = trial_rows(trials)
    assert list(rows.columns)[6:13] == ["loss", "macs", "params", "latency_ms", "energy_mj", "mib", "seconds"]
    assert rows["mib"].isna().tolist() == [True, False]
    assert rows["mib"].iloc[1] == 2.5
    assert list(trial_rows(trials[:1]).columns) == list(TRIAL_COLUMNS)


def test_a_command_to_go_on_with_can_be_pasted_into_a_shell(tmp_path):
    words = shlex.split(RunFolder(tmp_path / "runs/int8 ü it's").prune_command)
    folder = tmp_path / "runs/int8 ü it's"
    assert words == ["amcsearch", "prune", f"{folder}/config.yaml", "--policy", f"{folder}/policy.json"]
