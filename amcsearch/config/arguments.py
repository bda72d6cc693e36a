"""Arguments of verbs that are no keys of the configuration, checked before any work, and before a service queues it."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from amcsearch.config.lookup import DEVICES, TABLES, Kind, listed, lookup
from amcsearch.config.messages import hint
from amcsearch.core import BadInputError

__all__ = ["LEAST_FRESH", "LEAST_VARIANTS", "check_list", "check_measuring", "check_once", "check_seeds", "find_target"]

LEAST_VARIANTS: Final = 12
"""Variants of a network that a latency table is made of."""
LEAST_FRESH: Final = 3
"""Fresh variants that a latency table is held to."""
MOST_SEEDS: Final = 1000


def find_target(device: Path | str) -> tuple[str | None, str | None]:
    """Return the paths of the device profile and of the latency table that a name, file or folder means, None for none.

    Raises:
        BadInputError: it is neither.
    """
    profile, table = (_path(kind, device) for kind in (DEVICES, TABLES))
    if profile is None and table is None:
        known = sorted({*listed(DEVICES), *listed(TABLES)})
        raise BadInputError(
            f"devices: {device} is no device profile and no latency table{hint(Path(device).name, known)}; give the "
            f"file of a profile, the folder of a table, or one of {', '.join(known)}"
        )
    return profile, table


def _path(kind: Kind, value: Path | str) -> str | None:
    path = lookup(kind, value)
    fits = path is not None and kind.fits(path) and (not kind.parts or kind.is_one(path))
    return str(path) if fits else None


def check_list(key: str, values: object, example: str) -> None:
    """Check that an argument of Python is a list, not one name, whose letters would be taken for names.

    Raises:
        BadInputError: it is not; shows the ``example``.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        raise BadInputError(f"{key} = {values!r:.60}, expected a list, such as {example}")


def check_once(key: str, names: Sequence[str]) -> None:
    """Check that no name of a list is there twice; ``key`` is that of the list, such as ``devices``.

    Raises:
        BadInputError: one is.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInputError(f"{key}: {twice} is there twice; name each {key.removesuffix('s')} once")


def check_seeds(seeds: Sequence[int]) -> None:
    """Check the seeds of a comparison.

    Raises:
        BadInputError: none or too many, one below 0, or one twice.
    """
    check_list("seeds", seeds, "[0, 1, 2]")
    if not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise BadInputError(
            f"seeds = {list(seeds)[:10]}, expected from 1 to {MOST_SEEDS} whole numbers of at least 0, each once"
        )


def check_measuring(variants: int | None, minutes: float | None) -> None:
    """Check how much is measured for a latency table.

    Raises:
        BadInputError: fewer variants than a table needs, or minutes that are not more than 0.
    """
    if variants is not None and variants < LEAST_VARIANTS:
        raise BadInputError(
            f"table measure: variants = {variants}, must be at least {LEAST_VARIANTS}; leave it out for as many as the "
            "network needs"
        )
    if minutes is not None and not minutes > 0:
        raise BadInputError(f"table measure: minutes = {minutes}, must be more than 0")
