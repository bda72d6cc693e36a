"""Numbers for people, worked by hand."""

import math

import pytest

from amcsearch.reporting import words
from amcsearch.runs.summary import Interval


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (words.percent(0.98611, 2), "98.61 %"),
        (words.percent(None), "–"),
        (words.percent(math.nan), "–"),
        (words.points(0.9889, 0.9861), "−0.28 points"),
        (words.points(0.9, 0.905), "+0.50 points"),
        (words.milliseconds(0.5), "0.500 ms"),
        (words.milliseconds(12.345), "12.3 ms"),
        (words.milliseconds(1234.5), "1234 ms"),
        (words.interval(Interval(0.25, 0.248, 0.2512), " ms"), "0.248–0.251 ms"),
        (words.interval(Interval(1.0, 1.0, math.nan)), ""),
        (words.cost("macs", 40_551_040), "40.6 M"),
        (words.cost("params", 999), "999"),
        (words.cost("macs", 4.1e9), "4.10 G"),
        (words.cost("energy_mj", 0.0888), "0.0888 mJ"),
        (words.cost("latency_ms", None), "–"),
        (words.cost("area_mm2", 0.25), "0.250"),
        (words.size(431_000), "431 kB"),
        (words.size(1_234_567), "1.23 MB"),
        (words.seconds(9), "9.0 s"),
        (words.seconds(151), "2 min 31 s"),
        (words.escape("<a & b>"), "&lt;a &amp; b&gt;"),
        (words.escape("a\nb"), "a\\nb"),
        (words.preformatted("a: <b>\n\n\x1b[1m"), "<pre>a: &lt;b&gt;\n\n\\x1b[1m</pre>"),
    ],
)
def test_words(text, wanted):
    assert text.replace("\u00a0", " ") == wanted
