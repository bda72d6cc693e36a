"""Prune as far as accuracy demonstrably stays: bisection over a ladder, then tests on samples it never saw.

1. Bisect the rungs for the last one that is accepted; a few rungs beyond the first rejected one are tried as well, for
   accuracy is not exactly monotone.
2. The accepted rungs, and a few below the lowest of them, are tested on other samples, from the safest to the boldest;
   the first that fails ends it. Such a fixed sequence keeps the chance of ending on any rung that breaks the promise
   at the level of ONE test (Angelopoulos et al. 2021, Learn then Test, arXiv 2110.01052); trying from the boldest down
   would not.
"""

import math
from collections.abc import Callable, Sequence

__all__ = ["accepted_rungs", "calls_at_most", "last_verified", "safest_first"]


def accepted_rungs(rungs: int, accept: Callable[[int], bool], scan: int = 0) -> list[int]:
    """Return the accepted ones of all rungs that were asked for, ascending; rung 0, the dense network, always is.

    Bisection asks at most ceil(log2(rungs)) times and finds the last accepted rung where acceptance is monotone; then
    ``scan`` rungs beyond are asked for, 2, 3, 5, 9, … above it. No rung is asked for twice.
    """
    asked = {0: True}
    low, high = 0, rungs  # accepted, rejected; rung ``rungs`` does not exist
    while high - low > 1:
        middle = (low + high) // 2
        asked[middle] = accept(middle)
        low, high = (middle, high) if asked[middle] else (low, middle)
    for bolder in (low + 1 + 2**k for k in range(scan)):
        if bolder < rungs and bolder not in asked:
            asked[bolder] = accept(bolder)
    return sorted(rung for rung, accepted in asked.items() if accepted)


def calls_at_most(rungs: int, scan: int) -> int:
    """Most rungs that ``accepted_rungs`` asks for."""
    return math.ceil(math.log2(max(rungs, 1))) + scan


def safest_first(accepted: Sequence[int]) -> list[int]:
    """Return the rungs to verify, ascending: the accepted ones, and a half, a quarter, … of the lowest above rung 0."""
    below, lowest = [], next((rung for rung in accepted if rung), 0)
    while lowest > 1:
        lowest //= 2
        below.append(lowest)
    return sorted({0, *below, *accepted})


def last_verified(candidates: Sequence[int], verify: Callable[[int], bool]) -> int:
    """Walk ``candidates`` from safe to bold and return the last before the first that fails; the first always holds."""
    last = candidates[0]
    for candidate in candidates[1:]:
        if not verify(candidate):
            break
        last = candidate
    return last
