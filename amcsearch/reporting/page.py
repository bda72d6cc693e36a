"""One self-contained HTML page: what a run found, and why to trust it.

It loads nothing: pictures are inline SVG, the style is inline, and a content policy forbids the rest. It reads only the
run folder, and says plainly what is not there.
"""

from typing import Final

from amcsearch import __version__
from amcsearch.reporting.goals import goal
from amcsearch.reporting.record import Record, read_record
from amcsearch.reporting.results import before_and_after, finalists, headline
from amcsearch.reporting.sections import pictures, provenance, reproduce, state, warnings
from amcsearch.reporting.style import CSS
from amcsearch.reporting.words import escape
from amcsearch.runs import RunFolder

__all__ = ["render"]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(run: RunFolder) -> str:
    """Return the page of a run, finished or not."""
    record = read_record(run)
    title = record.configured("name") or record.name
    results = headline(record) + before_and_after(record) if record.finished else ""
    body = [
        state(record),
        results,
        goal(record),
        warnings(record),
        pictures(record),
        finalists(record),
        provenance(record),
        reproduce(record),
    ]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}: pruning report</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(_lead(record))}</p></header>\n"
        + "\n".join(part for part in body if part)
        + f"\n<p class='note'>Made by amcsearch {escape(__version__)} from the run folder {escape(record.name)}.</p>"
        "\n</main>\n</body>\n</html>\n"
    )


def _lead(record: Record) -> str:
    agent, what = record.agent or "search", "Pruning" if record.summary.get("goal") else "Pruning policy search"
    return f"{what}: {agent}, {record.evaluations} evaluations" + ("" if record.finished else ", not finished")
