from amcsearch.runtime.on_device.drift import Drift


def with_blocks(*blocks):
    drift = Drift()
    for block in blocks:
        drift.begin_block(["a"])
        for ms in block:
            drift.add({"a": ms})
    return drift


def test_a_quiet_device():
    drift = with_blocks([1.0, 1.01, 1.0])
    assert drift.quiet_ms("a") == 1.0
    assert drift.quiet_rounds(["a"]) == [True, True, True]
    assert drift.summary() == {"rounds": 3, "disturbed_share": 0.0, "largest": 1.0}


def test_rounds_slower_than_a_twentieth_above_quiet_are_disturbed():
    drift = with_blocks([1.0] * 10, [1.04, 1.06, 1.0])
    assert drift.quiet_rounds(["a"]) == [True, False, True]
    assert drift.summary()["disturbed_share"] == round(1 / 13, 4)


def test_a_throttled_block_has_a_level_above_quiet():
    drift = with_blocks([1.0] * 10, [1.3] * 4)
    assert drift.level_ms("a") == 1.3
    assert drift.ratio(["a"]) == 1.3
    assert drift.summary() == {"rounds": 14, "disturbed_share": round(4 / 14, 4), "largest": 1.3}


def test_a_round_is_quiet_only_if_it_is_for_every_reference():
    drift = Drift()
    drift.begin_block(["a", "b"])
    for a, b in [(1.0, 5.0), (1.0, 6.0), (2.0, 5.0), (1.0, 5.0)]:
        drift.add({"a": a, "b": b})
    assert drift.quiet_rounds(["a", "b"]) == [True, False, False, True]


def test_records_of_one_block_are_replayed_once():
    block = {"reference": "a", "pass": 1, "reference_ms": [1.0, 1.3]}
    drift = Drift()
    drift.replay([block, block, {**block, "pass": 2}, {**block, "reference_ms": [1.0, 1.0, 1.0]}])
    assert drift.summary()["rounds"] == 7


def test_nothing_measured_is_no_drift():
    assert Drift().summary() == {"rounds": 0, "disturbed_share": 0.0, "largest": 1.0}
    assert Drift().ratio([]) == 1.0
