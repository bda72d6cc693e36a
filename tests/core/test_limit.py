"""Limits: values and refusals by hand, then what holds of every limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.config.yaml_text import parse_yaml, to_yaml
from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.limit import Limit, read_limit

UNITS = "of bytes also with one of B, kB, MB, GB, KiB, MiB, GiB"
OF_ANY = f"of ms for latency, of mJ for energy, {UNITS}"
WRITE = "write 0.5x, or the number of MACs alone"
DENSE = Cost(macs=200.0, params=50.0)


@pytest.mark.parametrize(
    ("written", "value", "of_dense", "most"),
    [
        ("0.5x", 0.5, True, 100.0),
        (".5x", 0.5, True, 100.0),
        ("1x", 1.0, True, 200.0),
        ("5e-1x", 0.5, True, 100.0),
        (" 0.5x ", 0.5, True, 100.0),
        (20, 20.0, False, 20.0),
        (1, 1.0, False, 1.0),
        ("20", 20.0, False, 20.0),
        ("1e2", 100.0, False, 100.0),
        (200.0, 200.0, False, 200.0),
    ],
)
def test_shares_numbers_and_texts_of_numbers(written: str | float, value: float, of_dense: bool, most: float) -> None:
    limit = Limit.parse("macs", written, "budget.macs")
    assert limit == Limit("macs", value, of_dense, "budget.macs")
    assert limit.resolve(limit.dense_cost(DENSE)) == most


@pytest.mark.parametrize(
    "written",
    [
        *("0x", "-0.5x", "1.5x", "halfx", "x", "", "nanx", "infx", "nan", "inf", "0", "half"),
        *(0, -3, 10**400, float("nan"), float("inf"), True),
    ],
)
def test_what_is_no_limit_names_key_value_bound_and_cure(written: str | float) -> None:
    with pytest.raises(BadInputError) as caught:
        Limit.parse("macs", written, "prune.target.macs")
    assert str(caught.value) == (
        f"prune.target.macs = {written!r}, must be a share of dense in (0x, 1x] such as 0.5x, or a number above 0; "
        + ("lower the limit or drop it" if written == "1.5x" else WRITE)
    )
    with pytest.raises(BadInputError, match=r"or a number in \(0, 200\], the dense network's macs; (lower|write)"):
        Limit.parse("macs", written, "prune.target.macs", 200.0)


@pytest.mark.parametrize(
    ("value", "of_dense", "said"),
    [
        *((0.0, False, r"0\.0"), (-1.0, True, "'-1x'"), (1.5, True, r"'1\.5x'")),
        *((float("nan"), False, "nan"), (float("inf"), False, "inf")),
    ],
)
def test_no_limit_can_be_made_out_of_range(value: float, of_dense: bool, said: str) -> None:
    with pytest.raises(BadInputError, match=rf"^key = {said}, must be a share of dense .*, or a number above 0; lower"):
        Limit("latency_ms", value, of_dense, "key")


@pytest.mark.parametrize("cost", ["macs", "params", "bytes"])
@pytest.mark.parametrize("written", [0.5, "0.5", 0.999])
def test_less_than_one_of_what_is_counted_was_meant_as_a_share(cost: str, written: str | float) -> None:
    number = float(written)
    with pytest.raises(BadInputError) as caught:
        Limit.parse(cost, written, f"budget.{cost}")
    assert str(caught.value) == (
        f"budget.{cost} = {number} is an absolute number of {cost}, must be at least 1; write {number}x for that share "
        "of the dense network's"
    )


def test_a_limit_is_written_as_short_as_it_reads_back() -> None:
    assert Limit("macs", 1.0, True, "k").written == "1x"
    assert Limit("macs", 0.25, True, "k").written == "0.25x"
    assert Limit("macs", 20.0, False, "k").written == 20.0


def test_less_than_one_millisecond_or_millijoule_is_meant() -> None:
    assert Limit.parse("latency_ms", 0.5, "budget.latency_ms").resolve(2.0) == 0.5
    assert Limit.parse("energy_mj", 0.001, "budget.energy_mj").resolve(2.0) == 0.001


@pytest.mark.parametrize("written", ["3KB", "3 Mib", "300kib"])
def test_a_unit_that_is_none_names_those_that_are_read(written: str) -> None:
    with pytest.raises(ValueError, match=rf"or a number \({OF_ANY}\) above 0$"):
        read_limit(written)
    with pytest.raises(
        BadInputError, match=rf"or a number \({UNITS}\) in \(0, 200\], the dense network's bytes; write 0\.5x"
    ):
        Limit.parse("bytes", written, "prune.target.bytes", 200.0)
    with pytest.raises(BadInputError, match=r"or a number above 0; write 0\.5x, or the number of MACs alone"):
        Limit.parse("macs", written, "budget.macs")


@pytest.mark.parametrize(
    ("cost", "written", "cure"),
    [
        ("latency_ms", "0.0005s", "write 0.5x, or the number of ms alone"),
        ("energy_mj", "2uJ", "write 0.5x, or the number of mJ alone"),
        ("params", "1M", "write 0.5x, or the number of parameters alone"),
        ("model_bytes", "2 kbyte", "write 0.5x, a number of bytes, or one with its unit such as 300 KiB"),
        ("own_cost", "3 W", "write 0.5x, or the number alone"),
    ],
)
def test_a_wrong_unit_is_answered_with_the_forms_that_are_read(cost: str, written: str, cure: str) -> None:
    with pytest.raises(BadInputError) as caught:
        Limit.parse(cost, written, f"budget.{cost}")
    assert str(caught.value).endswith(f"above 0; {cure}")


def test_more_than_dense_names_its_cost() -> None:
    limit = Limit.parse("bytes", 30000, "sparsify.target.bytes")
    with pytest.raises(BadInputError) as caught:
        limit.resolve(28944.0)
    assert str(caught.value) == (
        "sparsify.target.bytes = 30000.0, must be a share of dense in (0x, 1x] such as 0.5x, or a number in "
        "(0, 28944], the dense network's bytes; lower the limit or drop it"
    )
    assert Limit.parse("macs", 200.00000001, "budget.macs").resolve(200.0) == 200.00000001  # summed in another order


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        ("latency_ms", r"nothing here predicts latency_ms; give device\.table a latency table or drop the limit$"),
        ("energy_mj", r"nothing here predicts energy_mj; give device\.profile a device profile or drop the limit$"),
        ("flops", r"^k = 0\.5x: unknown cost 'flops'; choose from macs, params$"),
    ],
)
def test_a_cost_that_nothing_prices_names_the_cure(cost: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        Limit.parse(cost, "0.5x", "k").dense_cost(DENSE)


shares = st.floats(1e-300, 1.0, exclude_min=True)
numbers = st.floats(1.0, 1e300)
limits = st.builds(lambda value: Limit("macs", value, True, "k"), shares) | st.builds(
    lambda value: Limit("macs", value, False, "k"), numbers
)


@given(limits)
def test_a_limit_comes_back_from_the_yaml_of_a_configuration(limit: Limit) -> None:
    written = parse_yaml(to_yaml({"budget": {"macs": limit.written}}), "text")[0]["budget"]["macs"]
    assert Limit.parse("macs", written, "k") == limit
    assert Limit.parse("macs", str(limit.written), "k") == limit


@given(st.floats(1e-6, 1.0), st.floats(1e7, 1e12))
def test_a_share_and_its_number_agree(share: float, dense: float) -> None:
    most = Limit("macs", share, True, "k").resolve(dense)
    assert 0.0 < most <= dense
    assert Limit("macs", most, False, "k").resolve(dense) == most


@given(shares, shares, st.floats(1.0, 1e12), st.floats(1.0, 1e12))
def test_resolving_is_monotone_in_share_and_dense(share: float, other: float, dense: float, larger: float) -> None:
    low, high = sorted((share, other))
    small, large = sorted((dense, larger))
    assert Limit("macs", low, True, "k").resolve(small) <= Limit("macs", high, True, "k").resolve(large)


@given(st.text(max_size=8) | st.floats() | st.integers() | st.booleans())
def test_anything_is_read_or_refused(written: str | float | bool) -> None:
    try:
        value, of_dense = read_limit(written)
    except ValueError as error:
        units = f" ({OF_ANY})" if UNITS in str(error) else ""
        assert str(error) == f"expected a share of dense in (0x, 1x] such as 0.5x, or a number{units} above 0"  # noqa: PT017 - both outcomes are right
    else:
        assert 0.0 < value < float("inf")
        assert not of_dense or value <= 1.0


@pytest.mark.parametrize(
    ("written", "size"),
    [("300 KiB", 307_200.0), ("1.5MiB", 1_572_864.0), ("300 kB", 300_000.0), ("2 GB", 2e9), (" 64 B ", 64.0)],
)
@pytest.mark.parametrize("cost", ["model_bytes", "peak_memory_bytes", "bytes"])
def test_bytes_may_have_a_unit(cost, written, size):
    limit = Limit.parse(cost, written, f"budget.{cost}")
    assert (limit.value, limit.of_dense) == (size, False)
    assert Limit.parse(cost, limit.written, "budget") == Limit(cost, size, False, "budget")


@pytest.mark.parametrize(
    ("cost", "written"),
    [
        ("latency_ms", "300 KiB"),
        ("macs", "1 MB"),
        ("model_bytes", "300 Kib"),
        ("model_bytes", "0 KiB"),
        ("bytes", "KiB"),
    ],
)
def test_units_of_other_costs_and_unknown_ones_are_refused(cost, written):
    with pytest.raises(BadInputError, match=rf"budget\.{cost} = '{written}'"):
        Limit.parse(cost, written, f"budget.{cost}")
