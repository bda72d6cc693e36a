"""The page: self-contained, whole, and honest about what is missing."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from amcsearch.core.cost import Cost
from amcsearch.core.metric import Metric
from amcsearch.core.policy import PruningPolicy
from amcsearch.reporting.drawing import drawing
from amcsearch.reporting.figures import _front_line
from amcsearch.reporting.page import render
from amcsearch.reporting.record import read_record
from amcsearch.runs.measuring_device import MeasuringDevice
from amcsearch.runs.sparsify_summary import Density, SparseBlock, SparseLatency, SparsifySummary, SparsityTarget
from amcsearch.runs.verdict import Interval

SECTIONS = (
    *("before-after", "warnings", "front-latency_ms", "convergence", "channels", "latency", "finalists"),
    *("provenance", "reproduce"),
)
VOID = {"meta", "br", "img", "input", "hr", "link"}


class Outline(HTMLParser):
    """Collects ids, text and what a browser would load; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "data", "action", "srcset"):
                self.links.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def words(page: str) -> str:
    return " ".join(" ".join(outline(page).text).replace("\u00a0", " ").split())


def test_a_finished_run_has_every_section_once(finished):
    found = outline(render(finished))
    assert all(found.ids.count(section) == 1 for section in SECTIONS)
    assert len(set(found.ids)) == len(found.ids)
    assert "state" not in found.ids


def test_the_page_loads_nothing(finished):
    page = render(finished)
    assert all(link.startswith("#") for link in outline(page).links)
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"@import|url\((?!#)|<script|<link|<iframe", page)
    assert "default-src 'none'" in page


def test_every_reference_inside_a_picture_has_its_target(finished):
    page = render(finished)
    used = set(re.findall(r'url\(#([^)"]+)\)|href="#([^"]+)"', page))
    assert used
    assert {a or b for a, b in used} <= set(outline(page).ids)


def test_a_slower_network_is_called_slower(finished):
    path = finished.path / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "latency_ratio": {"median": 1.25, "low": 1.2, "high": 1.3}}))
    assert "1.25x slower" in words(render(finished))


def test_the_figures_are_those_of_the_summary(finished):
    text = words(render(finished))
    for part in (
        "2.04x faster",
        "0.509 ms → 0.250 ms",
        "0.491x of dense, 95 % interval 0.488–0.494",
        "98.61 %",
        "−0.28 points",
        "272 k → 105 k",
        "ONNX file 431 kB",
        "Budget: Latency at most 0.256 ms (0.5x of dense): predicted 0.255 ms, measured 0.491x of dense: met",
        "ONNX Runtime 1.21.0 there, 1.22.0 here",
        "Configuration abc123",
        "Evaluations ddpg 120, random 120",
        "search 2 min 31 s",
        "Trial",
        "amcsearch search digits-resnet20-abc123/config.yaml",
    ):
        assert part in text


def change(run, edit):
    summary = json.loads(run.summary_json.read_text())
    edit(summary)
    run.write_json(run.summary_json, summary)
    return words(render(run))


def test_a_missed_budget_is_said(finished):
    text = change(finished, lambda s: s["latency_ratio"].update(median=0.53, low=0.51, high=0.54))
    assert "measured 0.530x of dense: missed" in text


def test_an_interval_that_straddles_the_limit_decides_nothing(finished):
    text = change(finished, lambda s: s["latency_ratio"].update(median=0.49, low=0.48, high=0.51))
    assert "measured 0.490x of dense: undecided" in text


def test_an_absolute_budget_is_compared_in_its_own_unit(finished):
    text = change(finished, lambda s: s["budget"]["latency_ms"].update(asked=0.2, limit=0.2))
    assert "at most 0.200 ms: predicted 0.255 ms, measured 0.250 ms: missed" in text


def test_a_table_is_shown_with_its_own_errors(finished):
    accuracy = {"mape": 0.021, "within_5": 0.93, "within_10": 0.98, "noise_mape": 0.008}
    text = change(finished, lambda s: s["table"].update(accuracy=accuracy))
    errors = "mean error 2.1 %, 93.0 % within 5 %, 98.0 % within 10 %, measuring twice differs by 0.8 %"
    assert f"x86_epyc_avx512: {errors}" in text
    bare = change(finished, lambda s: s["table"].update(accuracy=None))
    assert "Latency table x86_epyc_avx512" in bare
    assert "within 10 %" not in bare


def test_a_prediction_is_shown_with_its_standard_deviation(finished):
    def doubt(summary):
        summary["pruned"].update(latency_ms_predicted=0.2547, latency_ms_predicted_sigma=0.0061)

    assert "±" not in words(render(finished)).replace("±10", "")
    assert "0.255 ms ±0.00610 ms" in change(finished, doubt)


def test_a_latency_in_doubt_is_no_speed(finished):
    verdict = {"limits": [], "problems": [], "warnings": [], "doubt": "the host was too busy: 60 of 100 rounds"}
    text = change(finished, lambda summary: summary.update(verdict=verdict, files=[]))
    assert "Measured latency undecided the host was too busy" in text


def test_accuracy_of_an_int8_model_is_shown_as_delivered(finished):
    assert "int8" not in words(render(finished))
    assert "Dense, float32" not in words(render(finished))

    def quantise(summary):
        summary["dtype"] = "int8"
        summary["dense"]["accuracy_int8"], summary["finetuned"]["accuracy_int8"] = 0.9871, 0.9812
        in_int8 = summary["dense"]["latency_ms_measured"]["median"]
        summary["float32_ms"] = {"median": 4 * in_int8, "low": 3.9 * in_int8, "high": 4.1 * in_int8}

    text = change(finished, quantise)
    assert "Accuracy, int8" in text
    assert "98.12 % dense 98.71 % −0.59 points, test split, as delivered" in text
    assert "98.61 %" in text  # of the network in float32
    assert "Dense, float32" in text
    assert "Of the dense network's latency in float32, int8 alone leaves 0.250x, and with pruning 0." in text


def test_widths_left_out_are_counted(finished):
    assert "Widths left out" not in change(finished, lambda s: s.update(widths_left_out=0))
    text = change(finished, lambda s: s.update(widths_left_out=12))
    assert "Widths left out 12, no faster than wider ones of the same group" in text


def test_a_prediction_far_off_is_a_warning(finished):
    text = change(finished, lambda s: s["finalists"][0].update(latency_ms_predicted=1.0))
    assert "off for the finalists" in text


def test_an_unfinished_run_says_so_and_shows_its_trials(interrupted):
    page = render(interrupted)
    text = words(page)
    assert "This run has not finished" in text
    assert "ddpg, 120 evaluations, not finished" in text
    assert "summary.json is not there" in text
    assert "--resume" in text
    assert "Not there yet" in text
    assert page.count("<svg") == 2
    assert "Before and after" not in text


def test_an_unfinished_run_is_judged_as_it_began(interrupted):
    """An error of the user's own, lower is better: its front falls, and the axis has its unit."""
    trials = pd.read_csv(interrupted.trials_csv).rename(columns={"accuracy": "miss"})
    trials.to_csv(interrupted.trials_csv, index=False)
    front = trials[trials["state"] == "complete"].sort_values("macs").iloc[:3].assign(miss=[5.0, 7.0, 3.0])
    front.to_csv(interrupted.pareto_csv, index=False)
    assert read_record(interrupted).metric == Metric("miss")
    metric = {"name": "miss", "unit": "px", "higher_is_better": False}
    interrupted.write_json(interrupted.identity_json, {"metric": metric})
    record = read_record(interrupted)
    assert record.metric == Metric("miss", "px", higher_is_better=False)
    with drawing() as (_, axes):
        _front_line(axes, record, "macs", 1.0)
        assert list(axes.lines[0].get_ydata()) == [5.0, 3.0]
    page = words(render(interrupted))
    assert "Miss against MACs" in page
    assert "identity.json" not in page
    for damaged in ('{"metric": {"name": "miss"}}', "[]", "{", '{"metric": 3}'):
        interrupted.identity_json.write_text(damaged)
        assert "identity.json" in words(render(interrupted))


def test_an_empty_run_is_a_page_too(run):
    page = render(run)
    assert "This run has not finished" in words(page)
    assert "<svg" not in page


@pytest.mark.parametrize("content", [b"", b'{"dense": ', b"\xff\xfe\x00", b"[1, 2]\n", b"a,b\n1,2\n"])
def test_damaged_files_never_stop_the_page(finished, content):
    for name in ("trials.csv", "summary.json", "pareto.csv", "config.yaml"):
        (finished.path / name).write_bytes(content)
        if name != "summary.json":
            outline(render(finished))


@pytest.mark.parametrize("value", [None, [], {}, "text", 3, [{}], {"latency_ms": None}])
def test_odd_summaries_never_stop_the_page(run, value):
    keys = ("dense", "pruned", "finetuned", "budget", "finalists", "network", "seconds", "latency_ratio", "table")
    run.write_json(run.summary_json, {"finetuned": {"accuracy": 0.5}, **dict.fromkeys(keys, value)})
    outline(render(run))
    run.write_json(
        run.summary_json, {**dict.fromkeys(keys, value), "dense": {"accuracy": 1}, "finetuned": {"accuracy": 0.5}}
    )
    outline(render(run))


def test_a_damaged_summary_is_named_and_the_trials_are_shown(finished):
    text = change(finished, lambda summary: summary["dense"].update(accuracy="good"))
    assert "summary.json: dense: accuracy is 'good', expected a number" in text
    assert "This run has not finished" in text
    assert render(finished).count("<svg") == 2


def test_keys_of_another_version_are_left_out_or_take_their_default(finished):
    def newer(summary):
        summary["colour"] = "red"
        summary["finalists"][0]["colour"] = "red"
        del summary["table"], summary["warnings"]

    text = change(finished, newer)
    assert "This run has not finished" not in text
    assert "2.04x faster" in text
    assert "Latency table" not in text


def test_numbers_that_are_not_finite_are_dashes(finished):
    def undefine(summary):
        summary["pruned"]["accuracy"] = None
        summary["latency_ratio"] = dict.fromkeys(("median", "low", "high"))

    text = change(finished, undefine)
    assert not re.search(r"\bnan\b", text)
    assert "Pruned –" in text
    assert "Measured latency 0.250 ms 0.509 ms → 0.250 ms" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [slice(0, 3), slice(0, None)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["reward", "accuracy", "loss", "macs", "latency_ms"])
def test_trials_without_numbers_are_left_out_of_the_pictures(finished, column, bad, rows):
    for path in (finished.trials_csv, finished.pareto_csv):
        trials = pd.read_csv(path)
        trials.loc[trials.index[rows], column] = bad
        trials.to_csv(path, index=False)
    page = render(finished)
    outline(page)
    assert not re.search(r"\b(nan|inf)\b", page)


def test_pruning_while_training_is_shown_by_its_networks(run):
    blocks = [SparseBlock(0.98, 0.1, 1000, Cost(macs=2e6)), *[SparseBlock(0.97, 0.2, 250, Cost())] * 2]
    density, target = Density("a", 1, 4, 0.25), SparsityTarget("sparsity", 0.75, 0.25, 0.25)
    counts = (0.75, 1, 4, (density,), PruningPolicy({"a": 2}), 1, ("slow",), 5, {"sparsify": 2.0})
    run.write_summary(SparsifySummary(*blocks, "gradual", "weights", target, *counts))
    text = words(render(run))
    assert "Pruning while training: gradual" in text
    assert "Dense 98.00 % 1.00 k 2.00 M Sparse 97.00 % −1.00 points 250 −75 % –" in text
    assert "Seed 5" in text
    assert "slow" in text
    assert "amcsearch sparsify" in text


def test_latency_of_pruning_while_training_names_its_device(run):
    blocks = [SparseBlock(0.98, 0.1, 1000, Cost(macs=2e6, latency_ms=2.0))]
    blocks += [SparseBlock(0.97, 0.2, 250, Cost(macs=1e6, latency_ms=1.0))] * 2
    density, target = Density("a", 1, 2, 0.5), SparsityTarget("sparsity", 0.5, 0.5, 0.5)
    counts = (0.5, 1, 2, (density,), PruningPolicy({"a": 2}), 1, (), 5, {"sparsify": 2.0})
    summary = SparsifySummary(*blocks, "one_shot", "channels", target, *counts)
    awaited = replace(summary, device=MeasuringDevice("Cortex", "pi5", 1, 1))
    run.write_summary(awaited)
    text = words(render(run))
    assert "Latency, predicted Latency, measured Dense 98.00 % 1.00 k 2.00 M 2.00 ms not yet" in text
    assert "Latency is predicted, not yet measured on pi5 (Cortex)." in text
    assert (
        "amcsearch verify kit digits-resnet20-abc123 -o verify.pyz # on pi5 (Cortex) python3 verify.pyz -o result.jsonl"
        in text
    )
    ends = [Interval(ms, ms, ms) for ms in (2.0, 1.2, 0.6)]
    device = replace(awaited.device, runtime="ONNX Runtime 1.2", measured="2026-01-01")
    run.write_summary(replace(awaited, device=device, latency=SparseLatency(*ends)))
    text = words(render(run))
    assert "1.00 ms 1.20 ms" in text
    assert "network on pi5 (Cortex), with its 95 % bootstrap interval: 0.600x of dense (0.600–0.600)." in text
    assert "Measured with ONNX Runtime 1.2" in text
    assert "not yet" not in text


def test_a_run_without_latency_and_energy_shows_what_it_has(finished):
    def strip(summary):
        for name in ("dense", "pruned", "finetuned"):
            summary[name].update(energy_mj=None, latency_ms_predicted=None)
        summary["budget"] = {"macs": {"asked": "0.5x", "limit": 2e7, "predicted": 1.9e7}}

    text = change(finished, strip)
    assert "Energy" not in text
    assert "MACs at most 20.0 M (0.5x of dense)" in text
    assert "Accuracy against MACs" in text
    assert "standard deviation" not in text


def test_names_cannot_inject_markup(finished):
    def poison(summary):
        summary["warnings"] = ["<script>alert(1)</script>"]
        summary["agent"] = summary["baseline"] = "<img src=x onerror=alert(1)>"
        summary["network"][0]["group"] = "<b>$x_1$ & co"

    change(finished, poison)
    page = render(finished)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;b&gt;$x_1$ &amp; co" in page
    change(finished, lambda summary: summary["finalists"][0].update(trial="<i>"))
    page = render(finished)
    assert "<i>" not in page
    assert "trial is &#x27;&lt;i&gt;&#x27;, expected a whole number" in page


def test_equal_runs_give_equal_pages(finished):
    assert render(finished) == render(finished)


def test_commands_and_the_configuration_keep_their_lines(finished):
    page = render(finished)
    assert "\namcsearch report " in page
    assert "\\n" not in "".join(outline(page).text)


def test_rounds_of_short_trainings_are_told_with_all_their_epochs(finished):
    def trained(summary, *epochs):
        for entry, length in zip(summary["finalists"], epochs, strict=False):
            entry.update(accuracy_trained=0.5, reward_trained=-0.5, epochs_trained=length)

    assert "the best one after a short fine-tuning of each was chosen" in change(finished, lambda s: trained(s, 1, 1))
    text = change(finished, lambda s: trained(s, 1, 2))
    assert "after a short fine-tuning of 2 for 1 epoch, the best 1 for 2 epochs, 4 epochs in all, was chosen" in text


@pytest.mark.parametrize(
    ("measured_share", "words"),
    [
        (0.4, "the best one within the budget as measured was chosen"),
        (0.6, "none of them is within the limit on latency as measured, and the one closest to it was chosen"),
    ],
)
def test_a_finalist_beyond_the_limit_is_not_said_to_be_within(finished, measured_share, words):
    def measure(summary):
        limits = [
            {"cost": "latency_ms", "asked": "0.5x", "of_dense": True, "limit": 0.5, "predicted": 0.45,
             "measured": None, "state": "undecided", "reason": "by hand"}
        ]  # fmt: skip
        summary["verdict"] = {"limits": limits, "problems": [], "warnings": [], "doubt": None}
        for entry in summary["finalists"]:
            entry["latency_ratio"] = {"median": measured_share, "low": measured_share, "high": measured_share}

    assert words in change(finished, measure)


def test_a_finalist_in_reserve_is_named_and_was_not_trained(finished):
    def reserve(summary):
        first, *_, last = summary["finalists"]
        first.update(accuracy_trained=0.5, reward_trained=-0.5, epochs_trained=1, chosen=True)
        summary["finalists"] = [first, last | {"round": 2, "chosen": False}]

    text = change(finished, reserve)
    assert ", reserve" in text
    assert "short fine-tuning of each but the reserves was chosen" in text
