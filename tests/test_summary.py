"""Summaries: typed values that write and read the documented keys, and what is said of those that do not fit."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amcsearch.cli.run_text import sparsify_text, summary_text
from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs import Accuracy
from amcsearch.jobs.summary import _made
from amcsearch.reporting.results import budget
from amcsearch.runs.folder import RunFolder
from amcsearch.runs.goals import (
    FailedLevel,
    Goal,
    KeepAccuracyGoal,
    PairedChange,
    PolicyGoal,
    RoundSummary,
    TargetGoal,
)
from amcsearch.runs.sparsify_summary import Density, SparseBlock, SparsifySummary, SparsityTarget
from amcsearch.runs.summary import DeliveredMetric, Interval, ModelBlock, Summary
from amcsearch.runs.table_summary import TableErrors
from amcsearch.runtime import paired_samples

SEARCH = """{
  "dense": {
    "accuracy": 0.9910913140311804,
    "macs": 40518272.0,
    "params": 272186.0,
    "energy_mj": 0.8317143464000002,
    "latency_ms_predicted": 0.727946829881402,
    "latency_ms_predicted_sigma": 0.014355662733789498,
    "latency_ms_measured": {
      "median": 0.754617125,
      "low": 0.75217925,
      "high": 0.75662475
    }
  },
  "pruned": {
    "accuracy": 0.27616926503340755,
    "macs": 9560224.0,
    "params": 39842.0,
    "energy_mj": 0.22037561616,
    "latency_ms_predicted": 0.2953222423742918,
    "latency_ms_predicted_sigma": 0.0058239812572904595,
    "latency_ms_measured": {
      "median": 0.3848465714285714,
      "low": 0.3831374285714286,
      "high": 0.3860499333333334
    }
  },
  "finetuned": {
    "accuracy": 0.9821826280623608,
    "macs": 9560224.0,
    "params": 39842.0,
    "energy_mj": 0.22037561616,
    "latency_ms_predicted": 0.2953222423742918,
    "latency_ms_predicted_sigma": 0.0058239812572904595,
    "latency_ms_measured": {
      "median": 0.3848465714285714,
      "low": 0.3831374285714286,
      "high": 0.3860499333333334
    }
  },
  "dtype": "float32",
  "latency_ratio": {
    "median": 0.5131261102753057,
    "low": 0.5087163366753633,
    "high": 0.515398911418662
  },
  "budget": {
    "latency_ms": {
      "asked": "0.5x",
      "limit": 0.363973414940701,
      "predicted": 0.2953222423742918
    }
  },
  "dense_search_accuracy": 0.9869791666666666,
  "table": {
    "name": "x86_epyc_avx512",
    "network": "digits-resnet20",
    "accuracy": {
      "variants": 60,
      "mape": 0.012744967023091032,
      "median": 0.009724430254909155,
      "worst": 0.06619774618667995,
      "within_5": 0.9833333333333333,
      "within_10": 1.0,
      "bias": 0.0019197215046525755,
      "spearman": 0.9980550152820231,
      "noise_mape": 0.01057495500491825
    }
  },
  "versions": {
    "python": "3.11.7",
    "amcsearch": "0.1.0",
    "torch": "2.13.0+cpu",
    "onnxruntime": "1.32.0",
    "optuna": "5.0.0",
    "stable-baselines3": "2.9.2",
    "torch-pruning": "1.6.1"
  },
  "onnx_max_abs_diff": 5.7220458984375e-06,
  "agent": "ddpg",
  "baseline": "random",
  "goal": null,
  "seed": 0,
  "evaluations": 200,
  "seconds": {
    "network": 21.654551741000006,
    "costs": 0.9649306069999852,
    "ranking": 1.8779215480000175,
    "search": 202.46330852500003,
    "finalists": 91.48916700699999,
    "finetune": 32.37279878600003,
    "verify": 21.019771788999947,
    "total": 371.842450003
  },
  "finalists": [
    {
      "trial": 50,
      "chosen": true,
      "policy": {
        "conv1": 8,
        "layer3.2.conv1": 24
      },
      "accuracy": 0.2578125,
      "reward": -0.7421875,
      "latency_ms_predicted": 0.2953222423742918,
      "latency_ms_measured": {
        "median": 0.3727531333333334,
        "low": 0.37059966666666666,
        "high": 0.37429693333333336
      },
      "latency_ratio": {
        "median": 0.5104300717615946,
        "low": 0.5090651450118567,
        "high": 0.512309679963583
      }
    }
  ],
  "network": [
    {
      "group": "conv1",
      "channels": 16,
      "kept": 8
    },
    {
      "group": "layer3.2.conv1",
      "channels": 64,
      "kept": 24
    }
  ],
  "skipped": [
    {
      "name": "head",
      "reason": "part of the network's output, which is never pruned"
    }
  ],
  "channel_multiple": 8,
  "widths_left_out": 2,
  "warnings": [
    "no finalist met latency_ms = 0.5x as measured: the closest took 1.025 of the limit"
  ]
}
"""
"""A search of ResNet-20 as it was written before summaries were typed, with fewer finalists and groups."""

TARGET = {
    "kind": "target",
    "cost": "bytes",
    "asked": "0.5x",
    "allocation": "global",
    "limit": 544372.0,
    "dense": 1088744.0,
    "achieved": 544000.0,
    "smallest_step": None,
    "rungs": 24,
    "rung": 9,
    "rung_value": 540000.0,
    "moves": 3,
}
ROUNDS = {
    "rounds": [
        {"limit": 800000.0, "achieved": 799000.0, "accuracy_pruned": 0.9, "accuracy_finetuned": 0.95},
        {"limit": 544372.0, "achieved": 544000.0, "accuracy_pruned": 0.8, "accuracy_finetuned": 0.94},
    ]
}
KEEP_ACCURACY = {
    "kind": "keep_accuracy",
    "points": 0.5,
    "confidence": 0.95,
    "allocation": "uniform",
    "evaluated": "as pruned, before fine-tuning",
    "rungs": 24,
    "rung": 3,
    "accepted": [1, 3, 5],
    "search": {"samples": 192, "change": -0.001, "change_low": -0.004},
    "verification": {"samples": 192, "change": None, "change_low": None},
    "failed": [{"rung": 5, "samples": 192, "change": -0.02, "change_low": -0.03}],
}
SPARSE = {
    "dense": {"accuracy": 0.98, "loss": 0.1, "nonzero_params": 1000, "macs": 2e6, "params": 1e3},
    "sparse": {"accuracy": 0.9, "loss": 0.3, "nonzero_params": 260},
    "finetuned": {"accuracy": 0.97, "loss": 0.12, "nonzero_params": 260},
    "method": "gradual",
    "granularity": "weights",
    "target": {
        "bytes": "0.5x",
        "kept_asked": 0.5,
        "kept": 0.4998,
        "cost": "bytes",
        "limit": 2000.0,
        "dense": 4000.0,
        "achieved": 1999.0,
        "storage": "bitmap",
    },
    "sparsity": 0.75,
    "kept": 1,
    "total": 4,
    "densities": [{"name": "conv1.weight", "kept": 1, "total": 4, "density": 0.25}],
    "policy": {"conv1": 4},
    "channel_multiple": 8,
    "warnings": [],
    "seed": 0,
    "seconds": {"network": 1.5, "sparsify": 2.0, "total": 3.5},
}


def written(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False)


def edited(**changes: Any) -> dict[str, Any]:
    return {**json.loads(SEARCH), **changes}


def test_a_summary_of_an_older_run_is_written_back_key_for_key() -> None:
    summary = Summary.from_json(json.loads(SEARCH))
    assert written(summary.to_json()) == SEARCH.strip()
    assert summary.finetuned.cost == Cost(
        macs=9560224.0, params=39842.0, latency_ms=0.2953222423742918, energy_mj=0.22037561616
    )
    assert summary.dense.latency_ms == Interval(0.754617125, 0.75217925, 0.75662475)
    assert summary.budget["latency_ms"].asked == "0.5x"
    assert summary.table is not None
    assert summary.table.accuracy is not None
    assert summary.table.accuracy.variants == 60
    assert summary.chosen is not None
    assert (summary.chosen.trial, summary.chosen.policy) == (50, PruningPolicy({"conv1": 8, "layer3.2.conv1": 24}))
    assert "total" not in summary.seconds
    assert summary.total_seconds == 371.842450003


@pytest.mark.parametrize("goal", [{"kind": "policy"}, TARGET, {**TARGET, **ROUNDS}, KEEP_ACCURACY])
def test_goals_are_written_back_key_for_key(goal: dict[str, Any]) -> None:
    values = edited(goal=goal)
    assert written(Summary.from_json(values).to_json()) == written(values)


def test_which_epoch_is_kept_is_stored_and_printed() -> None:
    kept = "5 epochs, the last is kept"
    searched = Summary.from_json(edited(training=kept))
    assert searched.to_json()["training"] == kept
    assert f"fine-tuning: {kept}" in summary_text(searched, Path("run"))
    sparse = SparsifySummary.from_json({**SPARSE, "training": kept})
    assert sparse.to_json()["training"] == kept
    assert f"fine-tuning: {kept}" in sparsify_text(sparse, Path("run"))


def test_goals_are_read_into_their_types() -> None:
    assert Goal.from_json({"kind": "policy"}, "goal") == PolicyGoal()
    target = Goal.from_json({**TARGET, **ROUNDS}, "goal")
    assert isinstance(target, TargetGoal)
    assert target.rounds[0] == RoundSummary(800000.0, 799000.0, 0.9, 0.95)
    kept = Goal.from_json(KEEP_ACCURACY, "goal")
    assert isinstance(kept, KeepAccuracyGoal)
    assert kept.verification == PairedChange(192, None, None)
    assert kept.failed == (FailedLevel(5, PairedChange(192, -0.02, -0.03)),)


@pytest.mark.parametrize("target", [SPARSE["target"], {"sparsity": 0.75, "kept_asked": 0.25, "kept": 0.25}])
def test_a_summary_of_sparsify_is_written_back_key_for_key(target: dict[str, Any]) -> None:
    values = {**SPARSE, "target": target}
    assert written(SparsifySummary.from_json(values).to_json()) == written(values)


def test_a_summary_of_sparsify_keeps_its_device_and_what_that_measured() -> None:
    device = {"name": "A76", "location": "offline", "threads": 1, "batch": 1, "runtime": None, "measured": None}
    device["predicted_for"] = None
    awaited = SparsifySummary.from_json({**SPARSE, "device": device})
    assert awaited.latency_ratio is None
    assert "latency" not in awaited.to_json()
    intervals = {name: {"median": ms, "low": ms, "high": ms} for name, ms in (("dense_ms", 2.0), ("finetuned_ms", 1.0))}
    latency = {**intervals, "ratio": {"median": 0.5, "low": 0.4, "high": 0.6}, "float32_ms": None}
    values = {**SPARSE, "device": {**device, "measured": "2026-01-01"}, "latency": latency}
    measured = SparsifySummary.from_json(values)
    assert written(measured.to_json()) == written(values)
    assert measured.latency_ratio == Interval(0.5, 0.4, 0.6)
    assert "latency: 0.500x of dense, measured in pairs (0.400–0.600) on A76" in sparsify_text(measured, Path("run"))


def test_a_summary_of_sparsify_is_typed() -> None:
    summary = SparsifySummary.from_json(SPARSE)
    assert summary.target == SparsityTarget("bytes", "0.5x", 0.5, 0.4998, 2000.0, 4000.0, 1999.0, "bitmap")
    assert summary.dense == SparseBlock(0.98, 0.1, 1000, Cost(macs=2e6, params=1e3))
    assert summary.sparse.cost == Cost()
    assert summary.densities == (Density("conv1.weight", 1, 4, 0.25),)


def test_the_delivered_file_has_its_accuracy_by_data_type() -> None:
    dense = {**json.loads(SEARCH)["dense"], "accuracy_int8": 0.97}
    block = ModelBlock.from_json(dense, "dense")
    assert block.delivered == DeliveredMetric("int8", 0.97)
    assert written(block.to_json()) == written(dense)
    assert "accuracy_int8" not in replace(block, delivered=None).to_json()


def test_unknown_costs_are_null_and_what_is_not_finite_too() -> None:
    values = ModelBlock(math.nan, Cost(macs=5.0), None, Interval(1.0, 0.5, math.inf)).to_json()
    assert list(values) == [
        *("accuracy", "macs", "params", "energy_mj"),
        *("latency_ms_predicted", "latency_ms_predicted_sigma", "latency_ms_measured"),
    ]
    assert values["accuracy"] is values["params"] is values["latency_ms_predicted"] is None
    block = ModelBlock.from_json(values, "dense")
    assert math.isnan(block.metric)
    assert math.isnan(block.latency_ms.high)
    assert block.cost == Cost(macs=5.0)


def test_costs_of_the_users_own_stand_among_the_built_in_ones() -> None:
    searched = json.loads(SEARCH)["dense"]
    keys = list(searched)
    after = keys.index("energy_mj") + 1
    values = {key: searched[key] for key in keys[:after]} | {"activation_mib": 1.5} | searched
    block = ModelBlock.from_json({**values, "accuracy_int8": 0.97}, "dense")
    assert block.cost.further == {"activation_mib": 1.5}
    assert list(block.to_json()) == [*keys[:after], "activation_mib", *keys[after:], "accuracy_int8"]
    assert block.to_json()["activation_mib"] == 1.5
    sparse = SparseBlock.from_json({**SPARSE["dense"], "activation_mib": 1.5, "kept_units": [1]}, "dense")
    assert sparse.cost == Cost({"macs": 2e6, "params": 1e3, "activation_mib": 1.5})
    assert sparse.to_json() == {**SPARSE["dense"], "activation_mib": 1.5}


def test_a_table_states_what_it_does_not_know() -> None:
    few = {"mape": 0.02, "noise_mape": None}
    assert TableErrors.from_json(few, "table").to_json() == few
    assert TableErrors.from_json({}, "table") == TableErrors()


def test_a_summary_keeps_every_error_that_a_table_states() -> None:
    stated = {item.name for item in fields(Accuracy)} - {"extra", "keys"}
    assert {item.name for item in fields(TableErrors)} - {"unknown"} == stated


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dense": None}, "summary.json: dense is None, expected an object"),
        ({"seed": "0"}, "summary.json: seed is '0', expected a whole number"),
        ({"seed": True}, "seed is True, expected a whole number"),
        ({"agent": 3}, "agent is 3, expected a text"),
        ({"warnings": "none"}, "warnings is 'none', expected a list"),
        ({"network": [{"group": "a"}]}, "summary.json: network[0] lacks channels, kept"),
        (
            {"budget": {"macs": {"asked": 1, "limit": [], "predicted": 1}}},
            "budget.macs: limit is [], expected a number",
        ),
        ({"goal": {"kind": "hope"}}, "goal is of kind 'hope', expected one of policy, target, keep_accuracy"),
        ({"finalists": [{**json.loads(SEARCH)["finalists"][0], "chosen": 1}]}, "chosen is 1, expected true or false"),
        ({"finalists": [{**json.loads(SEARCH)["finalists"][0], "policy": {"a": -1}}]}, "n_keep of 'a' is -1"),
    ],
)
def test_a_value_that_does_not_fit_is_one_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError) as caught:
        Summary.from_json(edited(**changes))
    assert words in str(caught.value)


def test_the_run_folder_gives_back_what_was_written(tmp_path: Any) -> None:
    with RunFolder.create(tmp_path / "run", "name: x\n", "abc", resume=False) as run:
        for summary in (Summary.from_json(json.loads(SEARCH)), SparsifySummary.from_json(SPARSE)):
            run.write_summary(summary)
            assert run.read_summary() == summary
        for damaged, words in (("{", "is damaged"), ("[]", "expected an object"), ("{}", "lacks agent, budget")):
            run.summary_json.write_text(damaged)
            with pytest.raises(BadInputError, match=words) as caught:
                run.read_summary()
            assert "let the command that made the run end with --resume" in str(caught.value)
        run.summary_json.unlink()
        with pytest.raises(BadInputError, match=r"cannot read .*summary\.json"):
            run.read_summary()


def searched(low: float, high: float, verdict: bool) -> Summary:
    """A search with a latency limit of half; written by this version, or by one that wrote no verdict."""
    values: dict[str, Any] = json.loads(SEARCH)
    ratio = {"median": (low + high) / 2, "low": low, "high": high}
    read = Summary.from_json({**values, "latency_ratio": ratio, "warnings": []})
    return replace(read, verdict=read.judged) if verdict else read


@pytest.mark.parametrize("verdict", [True, False], ids=["this version", "without a verdict"])
@pytest.mark.parametrize(
    ("low", "high", "state"), [(0.4, 0.45, "met"), (0.49, 0.51, "undecided"), (0.52, 0.53, "missed")]
)
def test_terminal_page_json_and_python_say_the_same(low: float, high: float, state: str, verdict: bool) -> None:
    read = searched(low, high, verdict)
    assert read.judged.state == state
    assert f"verdict: {state} (latency_ms = 0.5x {state})" in summary_text(read, Path("run"))
    assert f">{state}</span>" in budget(read)
    if verdict:
        written = read.to_json()
        assert written["verdict"]["state"] == state
        assert Summary.from_json(written).judged == read.judged
    else:
        assert "verdict" not in read.to_json()


@pytest.mark.parametrize(("kept", "state"), [(0.4998, "met"), (0.501, "missed")])
def test_a_sparse_target_is_judged(kept: float, state: str) -> None:
    read = SparsifySummary.from_json({**SPARSE, "target": {**SPARSE["target"], "kept": kept}})
    assert read.judged.state == state
    assert f"verdict: {state} (bytes = 0.5x {state})" in sparsify_text(read, Path("run"))


def test_a_sparsity_is_exact_to_one_weight_and_latency_is_undecided() -> None:
    sparsity = {"sparsity": 0.75, "kept_asked": 0.25, "kept": 0.26}
    assert SparsifySummary.from_json({**SPARSE, "target": sparsity, "total": 100}).judged.state == "met"
    assert SparsifySummary.from_json({**SPARSE, "target": sparsity, "total": 101}).judged.state == "missed"
    latency = {"latency_ms": "0.5x", "kept_asked": 0.5, "kept": 0.4, "cost": "latency_ms", "limit": 1.0}
    assert SparsifySummary.from_json({**SPARSE, "target": latency}).judged.state == "undecided"


def test_a_limit_that_cannot_be_read_is_left_out() -> None:
    values = json.loads(SEARCH)
    values["budget"]["macs"] = {"asked": "half", "limit": 1.0, "predicted": 1.0}
    assert [limit.cost for limit in Summary.from_json(values).judged.limits] == ["latency_ms"]


def test_a_text_that_may_be_missing_is_no_number() -> None:
    with pytest.raises(BadInputError, match="it: storage is 5, expected a text"):
        SparsityTarget.from_json({"sparsity": 0.5, "kept_asked": 0.5, "kept": 0.5, "storage": 5}, "it")


def test_the_name_of_a_target_is_a_text() -> None:
    with pytest.raises(BadInputError, match=r"it: cost is \{\}, expected a text"):
        SparsityTarget.from_json({"cost": {}, "kept_asked": 0.5, "kept": 0.5}, "it")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("here", "measure a latency table on this machine"),
        ("pi5", "measure a latency table on the device: amcsearch table measure CONFIG -o latency_tables/NAME --set"),
        ("offline", "measure a latency table on the device: amcsearch table kit CONFIG"),
    ],
)
def test_a_latency_table_is_advised_where_the_network_was_measured(location: str, expected: str) -> None:
    latency = paired_samples(np.full(40, 1.0), np.full(40, 0.5))
    assert _made(latency, None, "", location).table.startswith(expected)


@pytest.mark.parametrize(
    ("predicted", "words"), [(1.0, "10.0% slower"), (1.375, "20.0% faster"), (1.09, None), (None, None)]
)
def test_a_prediction_is_also_said_at_the_speed_of_the_measurement(predicted: float | None, words: str | None) -> None:
    """1.1 ms of the dense network are measured, and 0.4 of it are predicted of the delivered one."""
    read = searched(0.4, 0.45, verdict=True)

    def block(made: ModelBlock, ms: float | None) -> ModelBlock:
        measured = Interval(1.1, 1.0, 1.2)
        latency = {} if ms is None else {"latency_ms": ms}
        return replace(made, cost=Cost(macs=1.0, params=1.0, **latency), latency_ms=measured)

    tuned = block(read.finetuned, None if predicted is None else 0.4 * predicted)
    text = summary_text(replace(read, dense=block(read.dense, predicted), finetuned=tuned), Path("run"))
    assert ("the device was" in text) == (words is not None)
    said = f"was {words} than its latency table says, by the dense network: at that speed 0.440 ms was predicted"
    assert words is None or said in text
