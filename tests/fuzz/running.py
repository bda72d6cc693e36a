"""Feed mutated documents to a reader and count what came of it."""

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

__all__ = ["Tally", "feed"]


@dataclass
class Tally:
    """What came of many inputs; ``faults`` maps each place where a reader broke its promise to the first such input."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    slowest_s: float = 0.0

    @property
    def inputs(self) -> int:
        """How many were fed."""
        return sum(self.outcomes.values())


def feed(inputs: SearchStrategy[Any], count: int, read: Callable[[Any], str], *, random: bool) -> Tally:
    """Feed ``count`` inputs to ``read``, which says what came of each; the same ones each time unless ``random``."""
    tally = Tally()

    @settings(
        max_examples=count,
        derandomize=not random,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one_input(drawn: Any) -> None:
        began = time.process_time()
        try:
            tally.outcomes[read(drawn)] += 1
        except Exception as error:  # the fault that is looked for
            tally.outcomes["fault"] += 1
            tally.faults.setdefault(_place(error), drawn)
        tally.slowest_s = max(tally.slowest_s, time.process_time() - began)

    began = time.monotonic()
    one_input()
    tally.seconds = time.monotonic() - began
    return tally


def _place(error: Exception) -> str:
    """Type and text of an exception and its innermost place in the package."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/amcsearch/" in frame.filename]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "outside the package"
    return f"{type(error).__name__} at {place}: {str(error)[:160]}"
