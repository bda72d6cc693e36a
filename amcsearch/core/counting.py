"""Numbers of things in words."""

__all__ = ["counted"]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 width`` or ``2 widths``; ``plural`` where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
