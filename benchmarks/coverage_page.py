"""The coverage page and its picture, from the records of ``coverage.py``."""

from collections.abc import Callable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["write_page"]

Record = Mapping[str, Any]

CLOSE = 1e-4  # of the largest output: torch and ONNX Runtime round differently in float32
MACS_CLOSE = 0.005
REACHED = 0.9
REASON, CAUSE = 140, 240  # characters
UNMEASURED = "not measured"
OURS, THEIRS = "#0b6e99", "#d98c1f"
STEPS = {"trace": "tracing", "count": "counting", "removal": "removal", "onnx": "ONNX"}


def write_page(names: Sequence[str], records: Mapping[str, Record], folder: Path) -> None:
    """Write ``coverage.md`` and ``coverage.svg`` into a folder; networks without a record are left out."""
    measured = [records[name] for name in names if name in records]
    figure(measured).savefig(folder / "coverage.svg", metadata={"Date": None})
    parts = [HEAD.strip(), summary(measured), speed(records), tables(measured), failures(measured)]
    parts += [not_compared(measured), missing(names, records)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    (folder / "coverage.md").write_text(text, encoding="utf-8")


HEAD = """
# Networks that can be pruned

    OMP_NUM_THREADS=1 python benchmarks/coverage.py
    OMP_NUM_THREADS=1 python benchmarks/coverage.py --speed
    python benchmarks/coverage.py --page

Every classifier and segmenter of torchvision 0.28.0 at its published width and depth, on small images, and families of
transformers 5.23.0 as two blocks of width 64 (`benchmarks/coverage_networks.py`). Weights are random; nothing is
trained. A network of several inputs is traced with all of them; of a `transformers` output the first tensor counts.

- **seconds**: CPU time of `trace`, one thread.
- **groups**: channel groups that the search may shrink. In brackets those that Torch-Pruning 1.6.1 enumerates with the
  last layer kept, whether or not its own pruner can cut them.
- **reached**: multiply-accumulates in layers of which some group takes channels, as a share of all. The last layer
  counts as soon as its input can shrink. In brackets the same of Torch-Pruning's groups.
- **MACs**: counted by `trace`, against `torch.utils.flop_counter` with attention and recurrence as plain products,
  because it does not see the fused ones.
- **removal**, **ONNX**: a random half of every group removed at once. The largest difference between the outputs and
  those of the masked network, and between ONNX Runtime and torch, as a share of the largest output.
- **Torch-Pruning**: whether the network still runs after its own pruner took half of every group, with heads declared
  by the attributes that state them. Its pruner has 3 s of CPU time for small networks and 60 s for large ones; it was
  not run on four Swin transformers, `vit_h_14` and `regnet_y_128gf`.
- Each network has 15 minutes (those of torchvision 25) and 14 GiB of memory.

![Share of multiply-accumulates that pruning can reach, by network](coverage.svg)
"""


DENSE = """
The dense networks fail in the same way: torch's exporter stops in Nyströmformer, and Longformer's file differs.
"""
MISSING = {"vit_h_14": "632 million parameters; no result within ten minutes on the shared host"}
_TIED = "one table of embeddings for {}, which stays one: their channels leave together"
_SEVERAL = _TIED.format("the encoder, the decoder and the last layer")
_CROSS = f"{_SEVERAL}; and the attentions to the encoder share one table with a row for each head"
_SLOPES = "the attentions of all blocks share one table of slopes, so that their heads leave together"
_ONE_HEAD = "the first stage has one head, of which one line shapes queries, keys and values: the values are left alone"
NO_GROUPS = {
    "does not end": "its enumeration does not end in the time above",
    "cannot trace": "its tracing ends in an error",
    UNMEASURED: "not run",
}
WHY_FEWER = {
    "bert_mlm": _TIED.format("the input and the last layer"),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "umt5"), _SEVERAL),
    **dict.fromkeys(("t5", "t5_gated", "mt5", "longt5", "switch_transformers"), _CROSS),
    **dict.fromkeys(("bloom",), _SLOPES),
    "pvt": _ONE_HEAD,
    "squeezebert": "queries, keys and values are grouped convolutions, whose groups cannot leave alone",
}


def summary(records: Sequence[Record]) -> str:
    """What came of all networks, in one table."""

    def row(words: str, holds: Callable[[Record], bool], of: Sequence[Record] = records) -> str:
        return f"| {words} | {sum(map(holds, of))} of {len(of)} |"

    compared = [record for record in records if "tp_groups" in record]

    return "\n".join(
        [
            "## In all",
            "",
            "| | networks |",
            "|---|---|",
            row("traced without an error", lambda r: "groups" in r),
            row(
                f"at least {REACHED:.0%} of the MACs in layers that can shrink",
                lambda r: r.get("reached", 0) >= REACHED,
            ),
            row("the same by Torch-Pruning's groups", lambda r: r.get("tp_reached", 0) >= REACHED),
            row(
                "as many groups as Torch-Pruning, or more, where it enumerates any",
                lambda r: r.get("groups", -1) >= r["tp_groups"],
                compared,
            ),
            row(f"MACs within {MACS_CLOSE:.1%} of torch's counter", lambda r: macs_gap(r) <= MACS_CLOSE),
            row("half removed computes what half masked does", lambda r: r.get("removal", 1) <= CLOSE),
            row("ONNX Runtime computes what torch does", lambda r: r.get("onnx", 1) <= CLOSE),
            row("runs after Torch-Pruning's own pruner", lambda r: bool(r.get("tp_runs"))),
        ]
    )


def macs_gap(record: Record) -> float:
    """How far the MACs are from torch's, as a share of those."""
    if "macs_torch" not in record or "macs" not in record:
        return 1.0
    return abs(record["macs"] - record["macs_torch"]) / max(record["macs_torch"], 1)


def speed(records: Mapping[str, Record]) -> str:
    """How long tracing takes at the published picture size."""
    timed = [record for name, record in records.items() if name.startswith("speed/")]
    rows = [f"| {short(r['name'])} | {r['pixels']} | {r['seconds']:.1f} |" for r in timed]
    if not rows:
        return ""
    where = "CPU time of `trace` at the published picture size, least of three runs: {machine}, {date}, commit".format(
        **latest(timed)
    )
    head = ["## Speed", "", f"{where} `{timed[0]['commit']}`.", "", "| network | pixels | seconds |", "|---" * 3 + "|"]
    return "\n".join([*head, *rows])


def tables(records: Sequence[Record]) -> str:
    """one table a family."""
    head = (
        "| network | seconds | groups | reached | MACs | removal | ONNX | Torch-Pruning | largest layers left alone |"
    )
    parts = [
        "## By network",
        "All figures: {machine}, {date}, host shared with other work.".format(**latest(records)),
        engines(records),
    ]
    for family in dict.fromkeys(record["family"] for record in records):
        rows = [row_of(record) for record in records if record["family"] == family]
        parts.append("\n".join([f"### {family.capitalize()}", "", head, "|---" * 9 + "|", *rows]))
    return "\n\n".join(parts)


def latest(records: Sequence[Record]) -> dict[str, str]:
    """The machines of the records, and from when to when they were made."""
    machines = sorted({record.get("machine", "machine unknown") for record in records})
    dates = sorted({record.get("date", "") for record in records} - {""})
    return {"machine": "; ".join(machines), "date": " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))}


def engines(records: Sequence[Record]) -> str:
    """Say which commits the records were measured with."""
    by_commit: dict[str, list[str]] = {}
    for record in records:
        by_commit.setdefault(record.get("commit") or "", []).append(short(record["name"]))
    most, *others = sorted(by_commit, key=lambda commit: -len(by_commit[commit]))
    words = f"Measured with commit `{most}`"
    if not others:
        return words + "."
    parts = [
        (f"`{commit}`" if commit else "an unnamed one") + f" ({', '.join(by_commit[commit])})" for commit in others
    ]
    return f"{words}, but for networks that are measured with another: {'; '.join(parts)}."


def row_of(record: Record) -> str:
    """A line of the table."""
    if "groups" not in record:
        return f"| {short(record['name'])} |" + " – |" * 7 + f" {error_of(record)} |"
    cells = [
        short(record["name"]),
        f"{record['seconds']:.2f}",
        f"{record['groups']} ({record.get('tp_groups', '–')})",
        f"{percent(record['reached'])} ({percent(record.get('tp_reached'))})",
        million(record["macs"]) + ("" if macs_gap(record) == 0 else f" ({macs_gap(record):+.2%})"),
        small(record.get("removal")),
        small(record.get("onnx")),
        "runs" if record.get("tp_runs") else broken(record),
        "; ".join(f"`{plain(name)}` {percent(share)}: {plain(reason)}" for name, share, reason in record["left"][:2]),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def broken(record: Record) -> str:
    """In a word, how Torch-Pruning's pruner ended."""
    error = record.get("tp_error", record.get("ended", ""))
    if "Timeout" in error or "stopped" in error:
        return "does not end"
    if error == UNMEASURED:
        return UNMEASURED
    return "breaks" if "tp_groups" in record else "cannot trace"


def short(name: str) -> str:
    """The name without its library."""
    return name.partition("/")[2]


def plain(text: str) -> str:
    """A name or a reason without the module that calls the network, at most as long as a cell holds."""
    return shortened(text.replace("network.", "").replace(" in network ", " "), REASON)


def shortened(text: str, length: int) -> str:
    """A text cut at a word."""
    return text if len(text) <= length else text[:length].rpartition(" ")[0] + " …"


def percent(share: float | None) -> str:
    """A share; all is 100, and what is not all is not."""
    if share is None:
        return "–"
    return "100 %" if share == 1 else f"{min(share, 0.999):.1%}".replace("%", " %")


def million(macs: int) -> str:
    """Multiply-accumulates in millions."""
    return f"{macs / 1e6:,.1f} M" if macs < 1e8 else f"{macs / 1e6:,.0f} M"


def small(number: float | None) -> str:
    """A difference."""
    return "–" if number is None else "0" if number == 0 else f"{number:.0e}"


def error_of(record: Record) -> str:
    """The first error of a record in one line."""
    errors = [record[f"{step}_error"] for step in STEPS if f"{step}_error" in record]
    return (errors or [record.get("ended", "")])[0][:200]


def failures(records: Sequence[Record]) -> str:
    """What did not work, and where Torch-Pruning has more groups."""
    lines = [
        f"- {short(record['name'])}, {words}: {cause(record[f'{step}_error'])}"
        for record in records
        for step, words in STEPS.items()
        if f"{step}_error" in record
    ]
    lines += [
        f"- {short(record['name'])}, ONNX: ONNX Runtime differs by {record['onnx']:.0e} of the largest output"
        for record in records
        if record.get("onnx", 0) > CLOSE
    ]
    lines += [
        f"- {short(record['name'])}: {record['ended'][:240]}"
        for record in records
        if record.get("ended") and "onnx" not in record
    ]
    fewer: dict[str, list[str]] = {}
    for record in records:
        if record.get("groups", 0) < record.get("tp_groups", 0):
            star = "" if record.get("tp_runs") else "\\*"
            words = f"{short(record['name'])}{star} {record['groups']} against {record['tp_groups']}"
            fewer.setdefault(WHY_FEWER.get(short(record["name"]), "not looked into"), []).append(words)
    return "\n\n".join(
        [
            "## What did not work",
            "\n".join(lines) or "Nothing.",
            DENSE.strip() if lines else "",
            "## Fewer groups than Torch-Pruning",
            "\\*: the network does not run after Torch-Pruning's pruner." if fewer else "None.",
            "\n".join(f"- {', '.join(networks)}: {reason}" for reason, networks in fewer.items()),
            only_theirs(records),
        ]
    )


def only_theirs(records: Sequence[Record]) -> str:
    """Say which groups of Torch-Pruning shrink a width of a layer that none of ours does."""
    compared = [record for record in records if "tp_only" in record]
    lines = [
        f"- {short(r['name'])}: {', '.join(f'`{plain(x)}`' for x in r['tp_only'])}" for r in compared if r["tp_only"]
    ]
    head = (
        f"Torch-Pruning counts a tied table as two groups and makes two tensors of it. So for {len(compared)} networks "
        "the widths of layers were compared too: every width that its groups shrink is shrunk by ours, but for those of"
    )
    return "\n\n".join([head, "\n".join(lines)]) if compared else ""


def not_compared(records: Sequence[Record]) -> str:
    """Say for which networks there are no groups of Torch-Pruning, and why."""
    by_reason: dict[str, list[str]] = {}
    for record in records:
        if "tp_groups" not in record:
            by_reason.setdefault(NO_GROUPS[broken(record)], []).append(short(record["name"]))
    lines = [f"- {reason}, {len(names)}: {', '.join(names)}" for reason, names in by_reason.items()]
    return "\n\n".join(["## No groups of Torch-Pruning to compare with", "\n".join(lines)]) if lines else ""


def cause(error: str) -> str:
    """An error without the names of its class and of the module that calls the network, cut at a word."""
    return shortened(error.partition(": ")[2].replace("Delivers", "the network"), CAUSE)


def missing(names: Sequence[str], records: Mapping[str, Record]) -> str:
    """Name the networks that have no record."""
    absent = [short(name) for name in names if name not in records]
    lines = [f"- {name}: {MISSING[name]}" if name in MISSING else f"- {name}" for name in absent]
    return "\n\n".join(["## Not measured", "\n".join(lines)]) if absent else ""


def figure(records: Sequence[Record]) -> Figure:
    """Reached shares by network, one column a library: dots for ours, rings for Torch-Pruning's where it has some."""
    libraries = list(dict.fromkeys(record["name"].partition("/")[0] for record in records))
    columns = [[r for r in records if r["name"].startswith(f"{library}/")] for library in libraries]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "coverage", "font.size": 7}):
        height = 0.9 + 0.135 * max(map(len, columns), default=1)
        drawing = Figure(figsize=(10, height), layout="constrained")
        panels = drawing.subplots(1, len(columns), squeeze=False)[0]
        for panel, library, column in zip(panels, libraries, columns, strict=True):
            rows = range(len(column))
            theirs, ours = ([100 * r.get(key, nan) for r in column] for key in ("tp_reached", "reached"))
            panel.hlines(rows, theirs, ours, color="#cccccc", lw=0.8)
            panel.plot(theirs, rows, "o", mfc="white", mec=THEIRS, ms=4.5, label="Torch-Pruning")
            panel.plot(ours, rows, "o", color=OURS, ms=2.8, label="amcsearch")
            panel.set_yticks(rows, [short(r["name"]) for r in column])
            panel.set_ylim(len(column) - 0.4, -0.6)
            panel.set_xlim(-2, 102)
            panel.grid(axis="x", lw=0.3)
            panel.set_title(library)
            panel.set_xlabel("% of multiply-accumulates in layers that can shrink")
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].legend(loc="center left", frameon=True)
    return drawing
