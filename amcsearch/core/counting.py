"""Numbers for people: of things in words, and of what is measured in as many digits as say something."""

import math
from typing import Final

__all__ = ["alike", "counted", "digits"]

_FURTHER: Final = 2  # digits beyond three that a narrow spread adds at most


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 width`` or ``2 widths``; ``plural`` where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def digits(value: float) -> str:
    """Write three significant digits, without an exponent where that reads well: ``0.0131``, ``12.3``, ``1234``."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def alike(middle: float, spread: float, *others: float) -> list[str]:
    """Write ``middle`` and ``others`` with one number of decimals: three digits of ``middle``, and one of ``spread``.

    ``0.0131`` with a spread of ``0.00002`` has five decimals, since four would show no spread. A spread smaller than a
    hundred-thousandth of the middle is not shown.
    """
    if not (math.isfinite(middle) and middle):
        return [digits(value) for value in (middle, *others)]
    decimals = 2 - math.floor(math.log10(abs(middle)))
    if math.isfinite(spread) and spread > 0.0:
        decimals = min(max(decimals, -math.floor(math.log10(spread))), decimals + _FURTHER)
    return [f"{value:.{max(decimals, 0)}f}" for value in (middle, *others)]
