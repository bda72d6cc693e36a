"""Numbers of things in words, and of measurements in digits."""

import pytest

from amcsearch.core.counting import alike, counted, digits


@pytest.mark.parametrize(
    ("count", "nouns", "words"),
    [
        (0, ("width",), "0 widths"),
        (1, ("width",), "1 width"),
        (2, ("width",), "2 widths"),
        (1, ("policy", "policies"), "1 policy"),
        (3, ("policy", "policies"), "3 policies"),
    ],
)
def test_one_thing_has_no_plural(count: int, nouns: tuple[str, ...], words: str) -> None:
    assert counted(count, *nouns) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01307, "0.0131"), (0.5, "0.500"), (12.34, "12.3"), (123.4, "123"), (98304.0, "98304"), (0, "0.00")],
)
def test_a_value_has_three_significant_digits(value: float, text: str) -> None:
    assert digits(value) == text


@pytest.mark.parametrize(
    ("middle", "spread", "others", "texts"),
    [
        (0.013, 0.0002, (0.0002,), ["0.0130", "0.0002"]),  # 0.013 ± 0.000 said neither
        (0.0394, 0.00002, (0.03938, 0.03942), ["0.03940", "0.03938", "0.03942"]),
        (0.687, 0.024, (0.024,), ["0.687", "0.024"]),
        (12.35, 0.05, (12.3, 12.4), ["12.35", "12.30", "12.40"]),
        (1500.4, 20.0, (20.0,), ["1500", "20"]),
        (0.5, 1e-9, (0.5,), ["0.50000", "0.50000"]),  # two digits beyond three at most
        (0.5, 0.0, (0.0,), ["0.500", "0.000"]),
        (0.0, 0.1, (0.1,), ["0.00", "0.100"]),
    ],
)
def test_a_measurement_and_its_spread_have_as_many_decimals(
    middle: float, spread: float, others: tuple[float, ...], texts: list[str]
) -> None:
    assert alike(middle, spread, *others) == texts
