"""Drift: how much slower than in its quiet moments the device runs now, told by the reference models.

A reference's quiet level is a low quantile of its samples over the whole run so far; the quantile, not the least,
because a clock glitch makes a sample too short. A round in which a reference is slower than 1.05 times its quiet level
was disturbed (by a neighbour, a lower clock, heat) and does not count.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Iterable, Mapping, Sequence

import numpy as np

__all__ = ["DISTURBED", "QUIET_QUANTILE", "Drift"]

DISTURBED = 1.05
QUIET_QUANTILE = 0.1


def _low(samples: Sequence[float]) -> float:
    return float(np.quantile(np.asarray(samples), QUIET_QUANTILE))


class Drift:
    """The samples of every reference, in blocks of rounds."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[list[float]]] = defaultdict(list)

    def begin_block(self, references: Sequence[str]) -> None:
        """Begin a block of rounds that these references take part in."""
        for reference in references:
            self._blocks[reference].append([])

    def add(self, samples: Mapping[str, float]) -> None:
        """Add a round's sample of each reference, ms."""
        for reference, ms in samples.items():
            self._blocks[reference][-1].append(ms)

    def replay(self, timings: Iterable[Mapping[str, Any]]) -> None:
        """Add the rounds of timing records; those of one block repeat their reference's samples."""
        added = set()
        for record in timings:
            block = (str(record["reference"]), int(record["pass"]), tuple(record["reference_ms"]))
            if block not in added:
                added.add(block)
                self._blocks[block[0]].append(list(block[2]))

    def quiet_ms(self, reference: str) -> float:
        """The reference's quiet level over the run so far."""
        return _low([ms for block in self._blocks[reference] for ms in block])

    def quiet_rounds(self, references: Sequence[str]) -> list[bool]:
        """Which rounds of the block under way no reference calls disturbed."""
        bounds = [DISTURBED * self.quiet_ms(reference) for reference in references]
        rounds = zip(*(self._blocks[reference][-1] for reference in references))
        return [all(ms <= bound for ms, bound in zip(samples, bounds)) for samples in rounds]

    def level_ms(self, reference: str) -> float:
        """The reference's level in its last block: the same quantile."""
        return _low(self._blocks[reference][-1])

    def ratio(self, references: Sequence[str]) -> float:
        """Level of the last block over the quiet level, the largest among the references; 1 where all is quiet."""
        return max((self.level_ms(name) / self.quiet_ms(name) for name in references), default=1.0)

    def summary(self) -> dict[str, Any]:
        """Over the whole run, by its final quiet levels: rounds, share disturbed, and the largest drift of a block."""
        rounds = disturbed = 0
        largest = 1.0
        for reference, blocks in self._blocks.items():
            filled = [block for block in blocks if block]
            quiet = self.quiet_ms(reference) if filled else 1.0
            rounds += sum(len(block) for block in filled)
            disturbed += sum(ms > DISTURBED * quiet for block in filled for ms in block)
            largest = max([largest, *(_low(block) / quiet for block in filled)])
        share = disturbed / rounds if rounds else 0.0
        return {"rounds": rounds, "disturbed_share": round(share, 4), "largest": round(largest, 4)}
