"""The first part of the page: what the user got, in a headline and a table."""

from collections.abc import Sequence
from typing import Any, Final

from amcsearch.reporting.record import Record
from amcsearch.reporting.words import (
    LABELS,
    cost,
    deviation,
    escape,
    interval,
    milliseconds,
    number,
    percent,
    points,
    size,
)

__all__ = ["before_and_after", "budget", "finalists", "headline", "table"]

_BLOCKS: Final = (("dense", "Dense"), ("pruned", "Pruned"), ("finetuned", "Fine-tuned"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """Return a table of cells that are HTML already; the first of each row is its heading."""
    lines = ["<div class='scroll'><table><thead><tr>", *(f"<th>{cell}</th>" for cell in head), "</tr></thead><tbody>"]
    for i, (first, *rest) in enumerate(rows):
        mark = " class='chosen'" if i == chosen else ""
        lines.append(f"<tr{mark}><th>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def headline(record: Record) -> str:
    """One card a figure: how much faster, how accurate, how small."""
    dense, tuned = record.block("dense"), record.block("finetuned")
    key = _delivered(record)
    cards = [
        _speed_card(record, dense, tuned),
        _card(
            "Accuracy",
            percent(tuned.get(key), 2),
            f"dense {percent(dense.get(key), 2)}",
            f"{points(dense.get(key), tuned.get(key))}, test split" + ("" if key == "accuracy" else ", as delivered"),
        ),
        _size_card(record, dense, tuned),
        *(_cost_card(name, dense, tuned) for name in ("macs", "energy_mj") if number(tuned.get(name)) is not None),
    ]
    return "<section class='bare cards'>" + "".join(cards) + "</section>"


def _delivered(record: Record) -> str:
    """Where a block holds the accuracy of the model that is delivered: apart where it computes in another data type."""
    key = f"accuracy_{record.summary.get('dtype')}"
    return key if number(record.block("finetuned").get(key)) is not None else "accuracy"


def _card(what: str, value: str, *lines: str) -> str:
    small = "".join(f"<span>{escape(line)}</span>" for line in lines if line)
    return f"<div class='card'><span class='what'>{escape(what)}</span><b>{escape(value)}</b>{small}</div>"


def _speed_card(record: Record, dense: dict[str, Any], tuned: dict[str, Any]) -> str:
    before, after = dense.get("latency_ms_measured"), tuned.get("latency_ms_measured")
    ratio = record.summary.get("latency_ratio")
    middle = number(ratio.get("median")) if isinstance(ratio, dict) else None
    ends = f"{_median(before)} → {_median(after)}"
    share = f"{middle:.3f}x of dense, 95 % interval {interval(ratio)}" if middle else ""
    return _card("Measured latency", _speed(middle) if middle else _median(after), ends, share)


def _size_card(record: Record, dense: dict[str, Any], tuned: dict[str, Any]) -> str:
    left = _left(dense.get("params"), tuned.get("params"))
    ends = f"{cost('params', dense.get('params'))} → {cost('params', tuned.get('params'))}"
    file = f"ONNX file {size(record.onnx_bytes)}" if record.onnx_bytes else ""
    return _card("Parameters", left, ends, file)


def _cost_card(name: str, dense: dict[str, Any], tuned: dict[str, Any]) -> str:
    ends = f"{cost(name, dense.get(name))} → {cost(name, tuned.get(name))}"
    predicted = "predicted" if name == "energy_mj" else ""
    return _card(LABELS[name], _left(dense.get(name), tuned.get(name)), ends, predicted)


def _left(before: Any, after: Any) -> str:
    a, b = number(before), number(after)
    return "–" if not a or b is None else f"{100 * (b / a - 1):+.0f}\u00a0%".replace("-", "−")


def _speed(share: float) -> str:
    """Latency as a share of dense, in words."""
    return f"{1 / share:.2f}x faster" if share <= 1.0 else f"{share:.2f}x slower"


def _median(measured: Any) -> str:
    return milliseconds(measured.get("median")) if isinstance(measured, dict) else "–"


def before_and_after(record: Record) -> str:
    """Dense, pruned and fine-tuned, side by side."""
    dense = record.block("dense")
    delivered = _delivered(record)
    keys = list(dict.fromkeys(("accuracy", delivered)))
    names = [key.replace("accuracy", "Accuracy").replace("_", ", ") for key in keys]
    columns: list[tuple[str, str]] = [("macs", "MACs"), ("params", "Parameters"), ("energy_mj", "Energy, predicted")]
    columns += [(name, escape(name)) for name in record.further_costs]
    columns = [(name, text) for name, text in columns if any(record.block(b).get(name) is not None for b, _ in _BLOCKS)]
    head = ["", *map(escape, names), *(text for _, text in columns), "Latency, predicted", "Latency, measured"]
    rows = []
    for key, title in _BLOCKS:
        block = record.block(key)
        if not block:
            continue
        rows.append(
            [
                title,
                *(_with(percent(block.get(k), 2), "" if key == "dense" else _change(dense, block, k)) for k in keys),
                *(_with(cost(name, block.get(name)), _share(dense, block, name)) for name, _ in columns),
                _with(
                    milliseconds(block.get("latency_ms_predicted")), deviation(block.get("latency_ms_predicted_sigma"))
                ),
                _with(
                    _median(block.get("latency_ms_measured")), interval(block.get("latency_ms_measured"), "\u00a0ms")
                ),
            ]
        )
    return (
        f"<section id='before-after'><h2>Before and after</h2>{table(head, rows)}"
        f"<p class='note'>{_note(record, delivered)}</p>{budget(record)}</section>"
    )


def _note(record: Record, delivered: str) -> str:
    note = (
        "Accuracy is on the test split, read once. Measured latency is the median of runs interleaved with the dense "
        "network, with its 95 % bootstrap interval; removing channels and fine-tuning give the same shapes, so one "
        "measurement serves both."
    )
    if any(number(record.block(block).get("latency_ms_predicted_sigma")) is not None for block, _ in _BLOCKS):
        note += " Predicted latency is given with its standard deviation."
    if delivered != "accuracy":
        note += (
            f" The ONNX file and the latencies are of {escape(record.summary['dtype'])}; accuracy without this suffix "
            "is that of the network in float32, before it was quantised."
        )
    return note


def budget(record: Record) -> str:
    """Whether each limit holds, by prediction and (for latency) by measurement."""
    lines = []
    entries = record.summary.get("budget")
    for name, limit in record.budget.items():
        entry = entries[name] if isinstance(entries, dict) and isinstance(entries[name], dict) else {}
        asked = f" ({escape(entry['asked'])} of dense)" if str(entry.get("asked", "")).endswith("x") else ""
        shape = record.block("finetuned").get("latency_ms_predicted" if name == "latency_ms" else name)
        text = f"{LABELS.get(name, escape(name))} at most {cost(name, limit)}{asked}: predicted {cost(name, shape)}"
        lines.append(f"<p>Budget: {text}{_measured_verdict(record, str(entry.get('asked', '')), name, limit)}</p>")
    return "".join(lines)


def _measured_verdict(record: Record, asked: str, name: str, limit: float) -> str:
    measured, ratio = record.block("finetuned").get("latency_ms_measured"), record.summary.get("latency_ratio")
    if name != "latency_ms" or not isinstance(measured, dict) or number(measured.get("median")) is None:
        return "."
    value, bound, text = number(measured.get("median")), limit, f"measured {_median(measured)}"
    if asked.endswith("x") and isinstance(ratio, dict) and number(ratio.get("median")) is not None:
        value, bound = number(ratio.get("median")), number(_float(asked[:-1])) or limit
        text = f"measured {value:.3f}x of dense"
    met = value is not None and value <= bound
    verdict = "<span class='good'>met</span>" if met else "<span class='bad'>missed</span>"
    return f", {text}: {verdict}."


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _with(text: str, small: str) -> str:
    return f"{escape(text)}<small>{escape(small)}</small>" if small else escape(text)


def _change(dense: dict[str, Any], block: dict[str, Any], key: str) -> str:
    return "" if number(block.get(key)) is None else points(dense.get(key), block.get(key))


def _share(dense: dict[str, Any], block: dict[str, Any], name: str) -> str:
    return "" if block is dense or block == dense else _left(dense.get(name), block.get(name))


def finalists(record: Record) -> str:
    """The measured policies, prediction beside measurement; nothing where none was measured."""
    entries = record.entries("finalists")
    rows, mark = [], None
    for i, entry in enumerate(entries):
        measured = entry.get("latency_ms_measured")
        predicted, found = number(entry.get("latency_ms_predicted")), number((measured or {}).get("median"))
        error = f"{100 * (predicted / found - 1):+.1f}\u00a0%".replace("-", "−") if predicted and found else "–"
        mark = i if entry.get("chosen") else mark
        name = f"Trial {escape(entry.get('trial', i))}" + (", chosen" if entry.get("chosen") else "")
        latency = _with(_median(measured), interval(measured, "\u00a0ms"))
        rows.append([name, percent(entry.get("accuracy"), 2), milliseconds(predicted), latency, escape(error)])
    if not rows:
        return ""
    head = ["Policy", "Accuracy, search split", "Latency, predicted", "Latency, measured", "Prediction error"]
    note = "Measured before fine-tuning, which changes no shape; the best one within the budget as measured was chosen."
    return f"<section id='finalists'><h2>Finalists</h2>{table(head, rows, mark)}<p class='note'>{note}</p></section>"
