"""The main job through the command line, on a job of seconds: from a file to a proven model, and back from death."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pandas as pd
import pytest

from amcsearch.cli.main import main
from amcsearch.runtime import session
from tests.command_line import run

WriteConfig = Callable[..., Path]


def trials(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds")


def test_from_a_file_to_a_proven_model(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["search", str(write_config()), "--out", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((folder / "summary.json").read_text())
    dense, tuned = summary["dense"], summary["finetuned"]
    assert tuned["macs"] <= 0.6 * dense["macs"]
    assert tuned["params"] <= 0.7 * dense["params"]
    assert tuned["energy_mj"] < dense["energy_mj"]
    assert tuned["accuracy"] > 0.5
    assert summary["onnx_max_abs_diff"] < 1e-4
    assert summary["evaluations"] == 12
    assert len(trials(folder)) == 24  # the agent's and the baseline's
    trained = [finalist["accuracy_trained"] for finalist in summary["finalists"]]
    assert len(trained) >= 2
    assert [finalist["accuracy_trained"] for finalist in summary["finalists"] if finalist["chosen"]] == [max(trained)]
    session = ort.InferenceSession(str(folder / "pruned.onnx"))
    assert session.get_inputs()[0].shape == [1, 1, 8, 8]
    kept = json.loads((folder / "policy.json").read_text())
    assert kept == {entry["group"]: entry["kept"] for entry in summary["network"]}
    assert "<html" in (folder / "report.html").read_text()
    assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize("agent", ["ddpg", pytest.param("nsga2", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_end(write_config: WriteConfig, tmp_path: Path, agent: str) -> None:
    config = write_config("fatal")
    search = ["search", config, "--set", f"search.agent={agent}", "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run([*search, whole]).returncode == 0
    killed = run([*search, broken], TINY_JOB_DIES_AT="44")
    assert killed.returncode == -9
    assert not (broken / "summary.json").exists()
    refused = run([*search, broken])
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = run([*search, broken, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    pd.testing.assert_frame_equal(trials(whole), trials(broken))
    assert (whole / "policy.json").read_text() == (broken / "policy.json").read_text()


def test_workers_change_nothing(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config()
    serial, parallel = tmp_path / "serial", tmp_path / "parallel"
    options = ["--set", "search.agent=random", "--set", "search.batch=2"]
    assert main(["search", str(config), "--out", str(serial), *options]) == 0
    assert main(["search", str(config), "--out", str(parallel), *options, "--workers", "2"]) == 0
    pd.testing.assert_frame_equal(trials(serial), trials(parallel), atol=1e-5)


def test_a_front_for_several_objectives(write_config: WriteConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--set", "search.agent=nsga2", "--set", "search.objectives=[accuracy, macs]", "--set", "budget={}"]
    assert main(["search", str(write_config()), "--out", str(folder), *options]) == 0
    front = pd.read_csv(folder / "pareto.csv").sort_values("macs")
    assert len(front) >= 1
    assert front["accuracy"].is_monotonic_increasing


def test_prune_applies_a_policy(write_config: WriteConfig, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"stem.0": 8, "body.0": 12}))
    assert main(["prune", str(write_config()), "--policy", str(policy), "-o", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {entry["group"]: entry["kept"] for entry in summary["network"]} == {"stem.0": 8, "body.0": 12}
    (trial,) = pd.read_csv(tmp_path / "run" / "trials.csv").to_dict("records")
    assert json.loads(trial["policy"]) == {"stem.0": 8, "body.0": 12}
    assert "Some files are missing" not in (tmp_path / "run" / "report.html").read_text()


def test_an_int8_device_gets_an_int8_model_with_its_own_accuracy(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, folder = tmp_path / "policy.json", tmp_path / "run"
    policy.write_text(json.dumps({"stem.0": 8, "body.0": 12}))
    arguments = ["prune", str(write_config()), "--policy", str(policy), "-o", str(folder), "--set", "device.dtype=int8"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "accuracy int8" in printed
    assert "dense, float32" in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dtype"] == "int8"
    assert summary["onnx_max_abs_diff"] < 1e-4  # of the float32 export: quantising changes more
    for name in ("dense", "finetuned"):
        assert abs(summary[name]["accuracy_int8"] - summary[name]["accuracy"]) < 0.1
    assert "accuracy_int8" not in summary["pruned"]
    assert 0 < summary["float32_ms"]["low"] <= summary["float32_ms"]["median"] <= summary["float32_ms"]["high"]
    graph = onnx.load(str(folder / "pruned.onnx")).graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert "energy is predicted for those" in summary["warnings"][0]
    assert "Accuracy, int8" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("openvino")
def test_a_network_is_measured_and_judged_by_the_provider_of_its_device(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_session = [], session.open_session

    def noted(model, threads, provider, **options):
        opened.append(provider)
        return open_session(model, threads, provider, **options)

    monkeypatch.setattr(session, "open_session", noted)
    policy, folder = tmp_path / "policy.json", tmp_path / "run"
    policy.write_text(json.dumps({"stem.0": 8, "body.0": 12}))
    settings = ("--set", "device.provider=openvino", "--set", "device.rounds=20")
    assert main(["prune", str(write_config()), "--policy", str(policy), "-o", str(folder), *settings]) == 0
    # rehearsed; dense and pruned measured before fine-tuning and after it; scored as it is delivered
    assert opened.count("OpenVINOExecutionProvider") == 6
    assert opened.count("CPUExecutionProvider") == 2  # the export alone is checked, before training and after it
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["onnx_max_abs_diff"] < 1e-4
    assert not [text for text in summary["warnings"] if "provider" in text]


def test_sensitivity_writes_curves(write_config: WriteConfig, tmp_path: Path) -> None:
    assert (
        main(["sensitivity", str(write_config()), "-o", str(tmp_path / "curves"), "--points", "3", "--joint", "4"]) == 0
    )
    curves = pd.read_csv(tmp_path / "curves" / "sensitivity.csv")
    assert curves.groupby(["group", "recovery"]).size().unique().tolist() == [3]
    assert set(curves["group"]) == {"stem.0", "body.0"}
    dense = curves[curves["kept"] == curves.groupby("group")["kept"].transform("max")]
    assert dense.groupby("recovery")["loss"].nunique().to_dict() == {"bare": 1, "recovered": 1}
    assert len(pd.read_csv(tmp_path / "curves" / "additivity.csv")) == 4


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(write_config()), "--out", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[1] for line in printed.err.splitlines()] == ["Loading", "Pricing", "Rehearsing", "Timing"]
    plan = json.loads(printed.out)
    assert plan["network"]["groups"] == 2
    assert plan["policies"] == 4 * 5
    assert plan["expected_seconds"]["total"] > 0
    assert not (tmp_path / "run").exists()


def test_the_expected_time_counts_every_phase_of_a_run(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", str(write_config()), "--out", str(tmp_path / "run"), "--json"]
    assert main([*arguments, "--dry-run"]) == 0
    expected = json.loads(capsys.readouterr().out)["expected_seconds"]
    assert main(arguments) == 0
    assert list(expected) == list(json.loads(capsys.readouterr().out)["seconds"])
    assert main([*arguments, "--dry-run", "--set", "device.rounds=300"]) == 0
    longer = json.loads(capsys.readouterr().out)["expected_seconds"]
    # 300 rounds in blocks of 20 with pauses of 0.6 s: 8.4 s, and a sample of 0.5 ms or a call of each model
    assert longer["finalists"] > 14 * 0.6 + 300 * 3 * 0.0005
    assert longer["verify"] > 14 * 0.6 + 300 * 2 * 0.0005
