"""The rest of the page: pictures with how to read them, warnings, where everything came from, how to do it again."""

import shlex
from collections.abc import Mapping
from typing import Any, Final

from amcsearch.core import COST_NAMES
from amcsearch.reporting import figures
from amcsearch.reporting.record import Record
from amcsearch.reporting.words import LABELS, escape, number, percent, seconds

__all__ = ["pictures", "provenance", "reproduce", "state", "warnings"]

_POOR_ERROR: Final = 0.10


def state(record: Record) -> str:
    """Say plainly what is missing, or nothing."""
    if record.finished and not record.problems:
        return ""
    lines = [f"<li>{escape(problem)}</li>" for problem in record.problems]
    if record.finished:
        title, text = "Some files are missing", "The page shows what the others hold."
    else:
        title = "This run has not finished"
        text = (
            "It was interrupted or is still going on, and the page shows what exists so far. Every evaluation made is "
            "safe in study.db; the same command with --resume continues and ends as an unbroken run would have."
        )
    return f"<section class='warnings' id='state'><h2>{title}</h2><p>{text}</p><ul>{''.join(lines)}</ul></section>"


def warnings(record: Record) -> str:
    """What weakens the evidence, or nothing."""
    found = record.summary.get("warnings")
    texts = [str(text) for text in found] if isinstance(found, list) else []
    texts += _finalist_warnings(record)
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(texts))
    return f"<section class='warnings' id='warnings'><h2>Warnings</h2><ul>{items}</ul></section>"


def _finalist_warnings(record: Record) -> list[str]:
    ratios = [
        abs(predicted / measured - 1)
        for entry in record.entries("finalists")
        if (predicted := number(entry.get("latency_ms_predicted")))
        and (measured := number(_mapping(entry.get("latency_ms_measured")).get("median")))
    ]
    if not ratios or max(ratios) <= _POOR_ERROR:
        return []
    return [f"Predicted latency is up to {percent(max(ratios), 0)} off for the finalists; the measured figures decide."]


def pictures(record: Record) -> str:
    """All pictures, each with a sentence on how to read it; a missing one says what it needs."""
    further = record.further_costs
    limited = [name for name in record.budget if name in (*COST_NAMES, *further)] or ["macs"]
    parts = [_front(record, name) for name in dict.fromkeys((*limited, *further))]
    parts.append(
        _picture(
            ("convergence", "Convergence"),
            figures.convergence(record),
            "Best reward found after so many evaluations; the baseline spends the same number.",
            "needs trials.csv with at least one complete trial",
        )
    )
    parts.append(
        _picture(
            ("channels", "Kept channels"),
            figures.channels(record),
            "One bar a channel group, in order of execution: channels kept in front of all channels.",
            "needs the chosen policy in summary.json",
        )
    )
    parts.append(_latency(record))
    return f"<section class='pictures'>{''.join(parts)}</section>"


def _front(record: Record, name: str) -> str:
    label = LABELS[name] if name == "macs" else LABELS.get(name, name).lower()
    return _picture(
        (f"front-{name}", f"Accuracy against {label}"),
        figures.front(record, name),
        "Each dot is one evaluated policy before fine-tuning; no policy beats the line in both; the star is the chosen "
        "policy.",
        "needs trials.csv with at least one complete trial",
    )


def _latency(record: Record) -> str:
    return _picture(
        ("latency", "Predicted against measured latency"),
        figures.latency(record),
        "The best policies, measured in runs interleaved with the dense network; bars are 95 % intervals, the band is "
        "±10 % about the prediction.",
        "needs measured finalists and a latency table",
    )


def _picture(names: tuple[str, str], svg: str | None, reading: str, needs: str) -> str:
    key, title = names
    body = f"<figure>{svg}</figure>" if svg else f"<p>Not there yet: {escape(needs)}.</p>"
    lead = f"<p class='note'>{escape(reading)}</p>" if svg else ""
    return f"<section id='{escape(key)}'><h2>{escape(title)}</h2>{lead}{body}</section>"


def provenance(record: Record) -> str:
    """Where every figure comes from: agent, seed, table, versions, time by phase, configuration."""
    summary = record.summary
    agents = record.trials.groupby("agent", sort=False).size()
    rows = {
        "Run": record.name,
        "Configuration": record.config_hash,
        "Agent": record.agent,
        "Evaluations": ", ".join(f"{agent} {count}" for agent, count in agents.items()) or summary.get("evaluations"),
        "Seed": summary.get("seed"),
        "Channel multiple": summary.get("channel_multiple"),
        "Widths left out": _left_out(summary.get("widths_left_out")),
        "Torch against ONNX Runtime": _difference(summary.get("onnx_max_abs_diff")),
        "Latency table": _table(_mapping(summary.get("table"))),
        "Device profile": _plain(summary.get("device")),
        "Versions": _plain(summary.get("versions")),
        "Time": _times(summary.get("seconds")),
        "Left alone": "; ".join(f"{e.get('name')}: {e.get('reason')}" for e in record.entries("skipped")),
    }
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in rows.items()
        if value not in (None, "")
    )
    config = (
        f"<details><summary>Configuration, with every default written out</summary><pre>{escape(record.config_text)}"
        "</pre></details>"
        if record.config_text
        else ""
    )
    table = f"<table class='plain'><tbody>{cells}</tbody></table>"
    return f"<section id='provenance'><h2>Provenance</h2>{table}{config}</section>"


def reproduce(record: Record) -> str:
    """The commands that do it again."""
    run = shlex.quote(record.name)
    verb = "prune" if record.summary.get("goal") else "search"
    commands = (
        f"# in the folder that holds {record.name}: the same configuration and seed give the same trials\n"
        f"amcsearch {verb} {run}/config.yaml --out again\n\n"
        "# the chosen policy alone: prune, fine-tune, export, measure\n"
        f"amcsearch prune {run}/config.yaml --policy {run}/policy.json -o pruned\n\n"
        f"# this page\namcsearch report {run}"
    )
    note = "Latency is measured anew each time and moves a little; policies, accuracies and predicted costs do not."
    text = f"<pre>{escape(commands)}</pre><p class='note'>{note}</p>"
    return f"<section id='reproduce'><h2>How to reproduce</h2>{text}</section>"


def _left_out(value: Any) -> str:
    count = number(value)
    return f"{count:.0f}, no faster than wider ones of the same group" if count else ""


def _table(table: Mapping[str, Any]) -> str:
    """Name of the table, and its errors on variants of this network that it had not seen."""
    accuracy = _mapping(table.get("accuracy"))
    shares = (("mape", "mean error {}"), ("within_5", "{} within 5 %"), ("within_10", "{} within 10 %"))
    said = [text.format(percent(accuracy[key])) for key, text in shares if number(accuracy.get(key)) is not None]
    noise = number(accuracy.get("noise_mape"))
    said += [f"measuring twice differs by {percent(noise)}"] if said and noise is not None else []
    return ": ".join(text for text in (str(table.get("name") or ""), ", ".join(said)) if text)


def _difference(value: Any) -> str:
    found = number(value)
    return "" if found is None else f"outputs differ by at most {found:.1e}"


def _times(value: Any) -> str:
    return ", ".join(f"{name} {seconds(spent)}" for name, spent in _mapping(value).items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ((key, _plain(entry)) for key, entry in value.items())
        return ", ".join(f"{key} {text}" for key, text in inner if text)
    if isinstance(value, list):
        return ", ".join(_plain(entry) for entry in value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
