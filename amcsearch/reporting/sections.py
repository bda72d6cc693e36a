"""The rest of the page: pictures with how to read them, warnings, where everything came from, how to do it again."""

import shlex
from collections.abc import Mapping
from typing import Final

from amcsearch.core import COST_NAMES
from amcsearch.reporting import figures
from amcsearch.reporting.record import Record
from amcsearch.reporting.words import (
    LABELS,
    escape,
    known,
    marked,
    percent,
    preformatted,
    seconds,
    table,
    warnings_section,
)
from amcsearch.runs import Summary, TableErrors, TableSummary, with_total

__all__ = ["files", "pictures", "provenance", "reproduce", "state", "warnings"]

_POOR_ERROR: Final = 0.10


def state(record: Record) -> str:
    """Say plainly what is missing, or nothing."""
    if record.result is not None and not record.problems:
        return ""
    lines = [f"<li>{escape(problem)}</li>" for problem in record.problems]
    if record.result is not None:
        title, text = "Some files are missing", "The page shows what the others hold."
    else:
        title = "This run has not finished"
        text = (
            "It was interrupted or is still going on, and the page shows what exists so far. Every evaluation made is "
            "safe in study.db; the same command with --resume continues and ends as an unbroken run would have."
        )
    return f"<section class='warnings' id='state'><h2>{title}</h2><p>{text}</p><ul>{''.join(lines)}</ul></section>"


def files(record: Record) -> str:
    """Each delivered file beside the network in memory, or nothing where a run did not judge its files."""
    judged = () if record.result is None else record.result.files
    if not judged:
        return ""
    rows = [
        [
            escape(file.name),
            _number_or_none(file.relative_diff),
            f"{file.changed:,} of {file.predictions:,}" if file.predictions else "–",
            marked("yes") if file.problem is None else marked(file.problem, "bad"),
        ]
        for file in judged
    ]
    head = ["File", "Largest difference, share of scale", "Predictions changed", "Same network"]
    note = "Each file was read back from the disk and run on the whole test split, beside the network in torch."
    return f"<section id='files'><h2>Delivered files</h2>{table(head, rows)}<p class='note'>{note}</p></section>"


def _number_or_none(value: float) -> str:
    return "–" if known(value) is None else f"{value:.1e}"


def warnings(record: Record) -> str:
    """What weakens the evidence, or nothing."""
    texts = [] if record.result is None else [*record.result.warnings, *_finalist_warnings(record)]
    return warnings_section(dict.fromkeys(texts))


def _finalist_warnings(record: Record) -> list[str]:
    ratios = [
        abs(predicted / measured - 1)
        for finalist in (record.summary.finalists if record.summary else ())
        if (predicted := known(finalist.latency_ms_predicted))
        and finalist.latency_ms_measured is not None
        and (measured := known(finalist.latency_ms_measured.median))
    ]
    if not ratios or max(ratios) <= _POOR_ERROR:
        return []
    return [f"Predicted latency is up to {percent(max(ratios), 0)} off for the finalists; the measured figures decide."]


def pictures(record: Record) -> str:
    """All pictures, each with a sentence on how to read it; a missing one says what it needs.

    They are of policies that were tried, which pruning while training does not.
    """
    if record.sparse is not None:
        return ""
    further = record.further_costs
    budget = {} if record.summary is None else record.summary.budget
    limited = [name for name in budget if name in (*COST_NAMES, *further)] or ["macs"]
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
            "One bar a channel group, in order of execution: channels kept in front of all channels. Of a block that "
            "vanished, the shortcut alone is left.",
            "needs the chosen policy in summary.json",
        )
    )
    parts.append(_latency(record))
    return f"<section class='pictures'>{''.join(parts)}</section>"


def _front(record: Record, name: str) -> str:
    label = LABELS[name] if name == "macs" else LABELS.get(name, name).lower()
    return _picture(
        (f"front-{name}", f"{record.metric.label} against {label}"),
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
    agents = record.trials.groupby("agent", sort=False).size()
    evaluations = ", ".join(f"{agent} {count}" for agent, count in agents.items())
    if not evaluations and record.summary is not None:
        evaluations = str(record.summary.evaluations)
    result = record.result
    rows = {
        "Run": record.name,
        "Configuration": record.config.config_hash,
        "Agent": record.agent,
        "Evaluations": evaluations,
        "Seed": None if result is None else result.seed,
        "Channel multiple": None if result is None else result.channel_multiple,
        **({} if record.summary is None else _of_search(record.summary)),
        "Fine-tuning": None if result is None else result.training,
        "Measured with": _measured_with(record),
        "Time": None if result is None else _durations(with_total(result.seconds)),
        "Left alone": "; ".join(f"{e.name}: {e.reason}" for e in (record.summary.skipped if record.summary else ())),
    }
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in rows.items()
        if value not in (None, "")
    )
    config = (
        "<details><summary>Configuration, with every default written out</summary>"
        f"{preformatted(record.config.text)}</details>"
        if record.config.text
        else ""
    )
    listed = f"<table class='plain'><tbody>{cells}</tbody></table>"
    return f"<section id='provenance'><h2>Provenance</h2>{listed}{config}</section>"


def _of_search(summary: Summary) -> dict[str, str]:
    return {
        "Selection": summary.selection,
        "Widths left out": _left_out(summary.widths_left_out),
        "Torch against ONNX Runtime": _difference(summary),
        "Latency table": "" if summary.table is None else _table(summary.table),
        "Versions": ", ".join(f"{name} {version}" for name, version in summary.versions.items()),
    }


def _measured_with(record: Record) -> str:
    device = None if record.result is None else record.result.device
    return "" if device is None else device.runtime or ""


def reproduce(record: Record) -> str:
    """The commands that do it again."""
    run = shlex.quote(record.name)
    verb = "sparsify" if record.sparse else "prune" if record.summary and record.summary.goal else "search"
    commands = (
        f"# in the folder that holds {record.name}: the same configuration and seed give the same trials\n"
        f"amcsearch {verb} {run}/config.yaml --out again\n\n"
        "# the chosen policy alone: prune, fine-tune, export, measure\n"
        f"amcsearch prune {run}/config.yaml --policy {run}/policy.json -o pruned\n\n"
        f"# this page\namcsearch report {run}"
    )
    note = "Latency is measured anew each time and moves a little; policies, their metric and predicted costs do not."
    text = f"{preformatted(commands)}<p class='note'>{note}</p>"
    return f"<section id='reproduce'><h2>How to reproduce</h2>{text}</section>"


def _left_out(count: int) -> str:
    return f"{count}, no faster than wider ones of the same group" if count else ""


def _table(table: TableSummary) -> str:
    """Name of the table, and its errors on variants of this network that it had not seen."""
    errors = table.accuracy or TableErrors()
    shares = (
        (errors.mape, "mean error {}"),
        (errors.within_5, "{} within 5 %"),
        (errors.within_10, "{} within 10 %"),
    )
    sentences = [text.format(percent(share)) for share, text in shares if known(share) is not None]
    if sentences and known(errors.noise_mape) is not None:
        sentences.append(f"measuring twice differs by {percent(errors.noise_mape)}")
    origin = "" if table.origin is None else f"; {table.origin.sentence}"
    return ": ".join(text for text in (table.name, ", ".join(sentences)) if text) + origin


def _difference(summary: Summary) -> str:
    value = summary.onnx_max_abs_diff
    if known(value) is None:
        return "outputs cannot be compared: see the delivered files" if summary.files else ""
    return f"outputs differ by at most {value:.1e}"


def _durations(by_phase: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds(spent)}" for name, spent in by_phase.items())
