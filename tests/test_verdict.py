"""One verdict: limits by hand, intervals that straddle, busy hosts, files that are not what was judged."""

import json
import math
from dataclasses import replace

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.limit import Limit
from amcsearch.runs.verdict import (
    DeliveredFile,
    Interval,
    LimitVerdict,
    Measurement,
    Prediction,
    Verdict,
    VerdictState,
)

HALF = Limit("latency_ms", 0.5, True, "budget.latency_ms")
TWO_MS = Limit("latency_ms", 2.0, False, "budget.latency_ms")
MACS = Limit("macs", 0.5, True, "budget.macs")
TABLE = Prediction(1.96, 0.1, 4.0, "measure the table again")
MET, MISSED, UNDECIDED = VerdictState.MET, VerdictState.MISSED, VerdictState.UNDECIDED


def measured(low: float, high: float, *, disturbed: int = 0, rounds: int = 100, dense_ms: float = 4.0) -> Measurement:
    ratio = Interval((low + high) / 2, low, high)
    ms = Interval(dense_ms * ratio.median, dense_ms * low, dense_ms * high)
    return Measurement(ms, ratio, rounds, disturbed)


@pytest.mark.parametrize("asked", [HALF, TWO_MS], ids=["share", "absolute"])
@pytest.mark.parametrize(
    ("low", "high", "state"),
    [(0.3, 0.4, MET), (0.4, 0.5, MET), (0.48, 0.52, UNDECIDED), (0.5, 0.52, UNDECIDED), (0.51, 0.52, MISSED)],
)
def test_latency_is_judged_by_its_interval(asked: Limit, low: float, high: float, state: VerdictState) -> None:
    verdict = LimitVerdict.by_measurement(asked, 1.0, 4.0, measured(low, high))
    assert verdict.state is state
    assert verdict.predicted == (0.25 if asked.of_dense else 1.0)
    assert verdict.measured is not None
    assert verdict.measured.high == (high if asked.of_dense else 4.0 * high)
    assert str(state) in verdict.text


@pytest.mark.parametrize(
    ("limit", "predicted_ms", "cure"),
    [
        (HALF, 2.0, "0.5x of dense was predicted: ask for latency_ms = 0.416x, or measure a latency table"),
        (TWO_MS, 1.8, "1.8 ms was predicted: ask for latency_ms = 1.5 ms, or measure a latency table"),
        (HALF, 2.4, "0.6x of dense was predicted: prune further, or raise the limit"),
        (HALF, 0.0, "at most 0.5x of dense; measure a latency table on this machine, and search again"),
    ],
)
def test_a_missed_limit_says_what_to_ask_for_instead(limit: Limit, predicted_ms: float, cure: str) -> None:
    verdict = LimitVerdict.by_measurement(limit, predicted_ms, 4.0, measured(0.55, 0.6))  # 0.5 * 0.5 / 0.6 is 0.4167
    assert cure in verdict.reason


@pytest.mark.parametrize(
    ("rounds", "disturbed", "is_decided"),
    [
        *((100, 0, True), (25, 75, True), (5, 0, True), (4, 0, False), (0, 0, True)),
        *((24, 76, False), (29, 88, False), (30, 91, True)),  # more than three quarters: thirty at least
        *((17, 83, False), (262, 898, True)),  # a copy 5 % off, and a network within 0.3 %
        *((36, 264, True), (35, 265, False), (120, 880, True), (119, 881, False)),  # 12 %, however many
    ],
)
def test_a_busy_host_and_few_rounds_decide_nothing(rounds: int, disturbed: int, is_decided: bool) -> None:
    for low, high, state in ((0.3, 0.4, MET), (0.6, 0.7, MISSED)):
        made = measured(low, high, rounds=rounds, disturbed=disturbed)
        verdict = LimitVerdict.by_measurement(HALF, 1.0, 4.0, made)
        assert verdict.state is (state if is_decided else UNDECIDED)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_is_never_met(bad: float) -> None:
    for made in (measured(bad, bad), measured(0.1, bad)):
        assert LimitVerdict.by_measurement(HALF, 1.0, 4.0, made).state is not MET
    assert LimitVerdict.by_prediction(MACS, bad, 100.0).state is MISSED
    assert LimitVerdict.by_prediction(MACS, 40.0, math.nan).state is MISSED
    assert LimitVerdict.by_prediction(Limit("macs", 50.0, False, "budget.macs"), bad, 100.0).state is MISSED
    assert Verdict.of([], [], measured(bad, bad)).warnings != ()


def test_predicted_costs_are_exact() -> None:
    assert LimitVerdict.by_prediction(MACS, 50.0, 100.0).state is MET
    assert LimitVerdict.by_prediction(MACS, 50.0 * (1 + 1e-12), 100.0).state is MET  # summed in another order
    missed = LimitVerdict.by_prediction(MACS, 50.001, 100.0)
    assert missed.state is MISSED
    assert (missed.limit, missed.predicted, missed.measured, missed.of_dense) == (0.5, 0.50001, None, True)
    assert LimitVerdict.by_prediction(Limit("macs", 50.0, False, "budget.macs"), 50.5, 100.0).state is MISSED


def test_the_worst_limit_is_the_verdict_and_a_bad_file_is_worse() -> None:
    met = LimitVerdict.by_prediction(MACS, 40.0, 100.0)
    missed = LimitVerdict.by_prediction(MACS, 60.0, 100.0)
    undecided = LimitVerdict.by_measurement(HALF, 1.0, 4.0, measured(0.49, 0.51))
    assert Verdict.of([]).state is MET
    assert Verdict.of([met]).state is MET
    assert Verdict.of([met, undecided]).state is UNDECIDED
    assert Verdict.of([undecided, missed, met]).state is MISSED
    bad = DeliveredFile("pruned.onnx", 5, 1.0, 1.0, 0, 5, "differs by 1")
    refused = Verdict.of([met, missed], [bad])
    assert refused.state is VerdictState.REFUSED
    assert refused.texts == ("pruned.onnx: differs by 1", missed.text)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.9, 0.99, ()), (0.95, 1.01, ("not measurably faster",)), (1.0, 1.2, ("slower than the dense one",))],
)
def test_a_network_that_is_not_faster_is_a_warning_without_a_latency_limit(
    low: float, high: float, words: tuple[str, ...]
) -> None:
    verdict = Verdict.of([], [], measured(low, high))
    assert verdict.state is MET
    assert len(verdict.warnings) == len(words)
    assert all(word in text for word, text in zip(words, verdict.warnings, strict=True))


def test_a_verdict_is_read_back() -> None:
    limits = [
        LimitVerdict.by_prediction(MACS, 40.0, 100.0),
        LimitVerdict.by_measurement(HALF, 1.0, 4.0, measured(0.6, 0.7)),
    ]
    verdict = Verdict.of(limits, [DeliveredFile("pruned.onnx", 5, 1.0, 1.0, 0, 5, "x")], measured(1.1, 1.2))
    values = json.loads(json.dumps(verdict.to_json()))
    assert values["state"] == "refused"
    assert Verdict.from_json(values, "verdict") == verdict
    with pytest.raises(BadInputError, match="state is 'perhaps', expected one of met, missed, undecided, refused"):
        LimitVerdict.from_json({**values["limits"][0], "state": "perhaps"}, "limit")


def test_an_interval_that_wide_is_no_verdict_but_the_prediction_with_its_error() -> None:
    for low, high in ((0.870, 2.026), (0.1, 0.49), (0.6, 1.4)):  # also where it lies on one side of the limit
        wide = replace(measured(low, high), predicted=TABLE, again="measure it later: amcsearch prune C --policy P")
        verdict = LimitVerdict.by_measurement(HALF, 1.96, 4.0, wide)
        assert verdict.state is UNDECIDED
        assert "but the host was too busy: the 95 % interval" in verdict.reason
        assert "is wider than 40% of its middle" in verdict.reason
        assert "; predicted 0.49 ± 0.025x of dense; measure it later: amcsearch prune C --policy P" in verdict.reason
    absolute = LimitVerdict.by_measurement(TWO_MS, 1.96, 4.0, replace(measured(0.3, 0.9), predicted=TABLE))
    assert "; predicted 1.96 ± 0.1 ms; " in absolute.reason
    untabled = LimitVerdict.by_measurement(TWO_MS, 1.96, 4.0, measured(0.3, 0.9))
    assert "; predicted 1.96 ms; measure it on an idle machine: " in untabled.reason
    assert untabled.reason.endswith(", or raise device.patience_s")


@pytest.mark.parametrize(
    ("limit", "share", "sigma", "low", "high", "is_told"),
    [
        # 0.213x ± 0.012 beside 0.32 to 0.334: 0.107 away, where two sigmas are 0.024 and a tenth is 0.021
        *((limit, 0.213, 0.012, 0.320, 0.334, True) for limit in (HALF, TWO_MS, MACS)),
        (HALF, 0.327, 0.012, 0.200, 0.210, True),  # faster than predicted is off as well
        (HALF, 0.213, 0.060, 0.320, 0.334, False),  # 0.107 away, and two sigmas are 0.12
        (HALF, 0.400, 0.001, 0.439, 0.445, False),  # 0.039 away, a tenth of the prediction is 0.04
        (HALF, 0.400, 0.001, 0.441, 0.445, True),
        (HALF, 0.300, 0.012, 0.270, 0.500, False),  # the host was too busy: nothing is known
        (HALF, 0.400, 0.001, 0.600, 0.610, False),  # missed in spite of the prediction: the limit says so
        (HALF, 0.510, 0.001, 0.700, 0.710, True),  # missed as predicted, and the table errs too
    ],
)
def test_a_prediction_that_the_measurement_refutes_is_told_with_its_cure(
    limit: Limit, share: float, sigma: float, low: float, high: float, is_told: bool
) -> None:
    table = Prediction(4.0 * share, 4.0 * sigma, 4.0, "measure the table again")
    made = replace(measured(low, high), predicted=table)
    if limit is MACS:
        judged = LimitVerdict.by_prediction(MACS, 1.0, 4.0)
    else:
        judged = LimitVerdict.by_measurement(limit, table.ms, table.dense_ms, made)
    told = [text for text in Verdict.of([judged], (), made).texts if "the latency table errs" in text]
    assert len(told) == is_told
    assert not [text for text in Verdict.of([judged], (), measured(low, high)).texts if "the latency table" in text]


def test_the_sentence_on_a_refuted_prediction_has_both_numbers_and_says_what_to_do() -> None:
    table = Prediction(0.852, 0.048, 4.0, "measure the table again")
    made = replace(measured(0.320, 0.334), predicted=table)
    (text,) = Verdict.of([LimitVerdict.by_measurement(HALF, 0.852, 4.0, made)], (), made).texts
    assert text == (
        "the latency table errs on the delivered network: it predicted 0.213 ± 0.012x of dense latency, measured are "
        "0.327 (0.32–0.334), so another policy may fit the limits better; measure the table again, and search again"
    )
    (text,) = Verdict.of([LimitVerdict.by_measurement(TWO_MS, 0.852, 4.0, made)], (), made).texts
    assert "it predicted 0.852 ± 0.048 ms, measured are 1.308 (1.28–1.336)" in text


@pytest.mark.parametrize(("low", "high", "in_doubt"), [(0.8, 1.2, False), (0.79, 1.21, True), (1.0, 1.0, False)])
def test_the_width_that_decides_nothing_is_a_share_of_the_middle(low: float, high: float, in_doubt: bool) -> None:
    assert (measured(low, high).doubt is not None) == in_doubt


def test_a_verdict_keeps_the_doubt_of_its_measurement() -> None:
    busy = Verdict.of([], made=measured(0.4, 0.41, disturbed=90, rounds=10))
    assert busy.doubt == "the host was too busy: 90 of 100 rounds were disturbed, at most 88 may be"
    few = measured(0.4, 0.41, disturbed=80, rounds=20).doubt
    assert few is not None
    assert few.endswith(
        "80 of 100 rounds were disturbed and 20 quiet; beyond 75% disturbed ones at least 30 must be quiet"
    )
    assert Verdict.from_json(json.loads(json.dumps(busy.to_json())), "verdict").doubt == busy.doubt
    assert Verdict.of([], made=measured(0.4, 0.41)).doubt is None
    too_few = "too few rounds: 4 of 10 were quiet, at least 5 are needed"
    assert measured(0.4, 0.41, disturbed=6, rounds=4).doubt == too_few
    before = {key: value for key, value in busy.to_json().items() if key != "doubt"}  # of a run of before
    assert Verdict.from_json(before, "verdict").doubt is None


@pytest.mark.parametrize(
    ("written", "text"),
    [("0.5x", "model_bytes = 0.5x"), ("40 KiB", "model_bytes = 40,960 bytes"), (900, "model_bytes = 900 bytes")],
)
def test_a_limit_is_told_with_its_unit(written: str | float, text: str) -> None:
    verdict = LimitVerdict.by_prediction(Limit.parse("model_bytes", written, "budget.model_bytes"), 900.0, 90_000.0)
    assert verdict.asked_text == text
    assert verdict.text.startswith(f"{text} is met: ")


def test_a_missed_limit_names_the_table_of_an_absent_device() -> None:
    made = replace(measured(0.59, 0.61), table="measure a latency table on the device: amcsearch table kit")
    reason = LimitVerdict.by_measurement(HALF, 0.0, 4.0, made).reason
    assert reason.endswith("; measure a latency table on the device: amcsearch table kit, and search again")
