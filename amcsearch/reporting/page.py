"""One self-contained HTML page: what a run found, and why to trust it.

It loads nothing: pictures are inline SVG, the style is inline, and a content policy forbids the rest. It reads only the
run folder, and says plainly what is not there. ``CSS`` uses system fonts and one column of text, light and dark, and is
readable on a phone and on paper.
"""

from collections.abc import Iterable
from typing import Final

from amcsearch import __version__
from amcsearch.core import counted
from amcsearch.reporting.goals import goal
from amcsearch.reporting.record import Record, read_record
from amcsearch.reporting.results import finalists, results
from amcsearch.reporting.sections import files, pictures, provenance, reproduce, state, warnings
from amcsearch.reporting.words import escape
from amcsearch.runs import RunFolder

__all__ = ["CSS", "document", "render"]

CSS: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #5d6570; --line: #dfe3e8; --band: #eceff3;
  --surface: #ffffff; --ground: #f6f7f9; --accent: #0072b2; --second: #d55e00; --good: #00724f; --warn: #fff5e6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --muted: #9aa4b0; --line: #353c45; --band: #272d35;
  --surface: #1a1f25; --ground: #12161b; --accent: #56b4e9; --second: #f0903c; --good: #3fc79a; --warn: #33270f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
header p, .lead { color: var(--muted); margin: 0.2rem 0 0; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 0 0 0.2rem; letter-spacing: -0.005em; }
section { margin-top: 1.6rem; background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.2rem 1.3rem 1.3rem; }
section.bare { background: none; border: 0; padding: 0; }
p { margin: 0.4rem 0; max-width: 70ch; }
p, li { overflow-wrap: anywhere; }
.note { color: var(--muted); font-size: 0.9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 0.7rem; }
.card { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 0.9rem 1rem; }
.card b { display: block; font-size: 1.42rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.25; }
.card span { display: block; font-size: 0.86rem; color: var(--muted); }
.card .what { color: var(--ink); font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1.6rem 1.2rem;
  background: none; border: 0; padding: 0; }
.pictures > section { margin: 0; }
figure { margin: 0.7rem 0 0; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
figure svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; margin-top: 0.7rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.42rem 0.7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--muted); font-size: 0.84rem; }
thead th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
tbody th { color: var(--ink); font-size: inherit; }
td small { color: var(--muted); display: block; font-size: 0.8rem; }
tr.chosen { font-weight: 600; }
table.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.plain th { text-align: left; vertical-align: top; width: 13rem; padding-left: 0; color: var(--muted);
  white-space: normal; overflow-wrap: anywhere; }
.names tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 10.5rem; }
.names td, .names th + th { padding-left: 0.3rem; padding-right: 0.4rem; }
.warnings { background: var(--warn); border-color: var(--second); }
.warnings ul { margin: 0.4rem 0 0; padding-left: 1.2rem; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--second); font-weight: 600; }
pre { background: var(--band); border-radius: 8px; padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.84rem;
  line-height: 1.45; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--muted); font-size: 0.92rem; margin-top: 0.8rem; }
@media (max-width: 560px) { main { padding: 1.3rem 0.8rem 3rem; } section { padding: 1rem 0.9rem; }
  table.plain th { width: 7.5rem; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""


_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(run: RunFolder) -> str:
    """Return the page of a run, finished or not."""
    record = read_record(run)
    body = [
        state(record),
        results(record),
        files(record),
        goal(record),
        warnings(record),
        pictures(record),
        finalists(record),
        provenance(record),
        reproduce(record),
    ]
    made_from = f"from the run folder {record.name}"
    return document(record.title, _lead(record), "pruning report", body, made_from)


def document(title: str, lead: str, kind: str, body: Iterable[str], made_from: str = "") -> str:
    """Return a page of sections that are HTML already; title, lead and what it was made from are text."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}: {escape(kind)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>\n"
        + "\n".join(part for part in body if part)
        + f"\n<p class='note'>Made by amcsearch {escape(f'{__version__} {made_from}'.strip())}.</p>"
        "\n</main>\n</body>\n</html>\n"
    )


def _lead(record: Record) -> str:
    if record.sparse is not None:
        return f"Pruning while training: {record.sparse.method}"
    has_goal = record.summary is not None and record.summary.goal is not None
    agent, verb = record.agent or "search", "Pruning" if has_goal else "Pruning policy search"
    return f"{verb}: {agent}, {counted(record.evaluations, 'evaluation')}" + (
        ", not finished" if record.result is None else ""
    )
