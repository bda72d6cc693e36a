"""Numbers of things in words."""

import pytest

from amcsearch.core.counting import counted


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
