"""Tables and picture of all_methods.csv.

    python benchmarks/methods/all_methods_report.py [--csv benchmarks/methods/all_methods.csv]

Prints a table for channels and one for single weights: mean before → mean ± standard deviation after training on, over
seeds; test accuracy in %, or the language model's perplexity; then mean seconds to prune (calibration, or training) and
to train on. Draws all_methods.png beside the rows.
"""

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from cells import CELLS
from scenes import SCENES

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PERPLEXITY: Final = "language_model"
TITLES: Final = {
    "resnet20": "ResNet-20",
    "mobilenetv2": "MobileNetV2",
    "vgg": "VGG",
    "vit": "ViT",
    PERPLEXITY: "language model, perplexity",
}


@dataclass
class Found:
    """What the seeds of one method on one network gave: accuracy in % or perplexity, and seconds."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    note: str = ""

    def __str__(self) -> str:
        if not self.after:
            return "not possible" if self.note else "not run"
        spread = statistics.stdev(self.after) if len(self.after) > 1 else math.nan
        few = "" if len(self.after) >= 3 else f" ({len(self.after)} seed{'s' * (len(self.after) > 1)})"
        return f"{_short(statistics.mean(self.before))} → {statistics.mean(self.after):.1f} ± {spread:.1f}{few}"


Table = dict[tuple[str, str, str], dict[str, Found]]  # (granularity, family, method) → network → found


def read(path: Path) -> tuple[Table, dict[str, list[float]]]:
    """Return what was found, and the dense network's figure of every row."""
    table: Table = defaultdict(lambda: defaultdict(Found))
    dense: dict[str, list[float]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            network = row["network"]
            found = table[row["granularity"], row["family"], row["method"]][network]
            found.note = row["note"]
            if found.note:
                continue
            found.before.append(_figure(row, "before"))
            found.after.append(_figure(row, "after"))
            found.seconds.append(float(row["prune_s"]) + float(row["recover_s"]))
            dense[network].append(_figure(row, "dense"))
    return table, dense


def _figure(row: dict[str, str], stage: str) -> float:
    if row["network"] == PERPLEXITY:
        return math.exp(min(float(row[f"{stage}_loss"]), 700.0))
    return 100.0 * float(row[f"{stage}_accuracy"])


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0e}"


def tables(table: Table, networks: Iterable[str]) -> None:
    """Print one table a granularity."""
    networks = list(networks)
    for granularity in ("channels", "weights"):
        print(f"\n### {granularity.capitalize()}\n")
        print(f"| family | method | {' | '.join(TITLES[n] for n in networks)} | seconds |")
        print("|---|---|" + "---|" * (len(networks) + 1))
        for cell in CELLS:
            if cell.granularity == granularity:
                found = table[granularity, cell.family, cell.name]
                seconds = " / ".join(_seconds(found[n]) for n in networks)
                print(f"| {cell.family} | {cell.name} | {' | '.join(str(found[n]) for n in networks)} | {seconds} |")


def _seconds(found: Found) -> str:
    return f"{statistics.mean(found.seconds):.0f}" if found.seconds else "-"


def draw(table: Table, networks: list[str], path: Path) -> None:
    """One panel a granularity: methods in order of their mean place, which is also the colour, after training on."""
    granularities = ("channels", "weights")
    rows = {g: [(g, c.family, c.name) for c in CELLS if c.granularity == g] for g in granularities}
    rows = {g: [key for key in keys if any(table[key][n].after for n in networks)] for g, keys in rows.items()}
    height = 0.26 * max(map(len, rows.values())) + 1.5
    figure, axes = plt.subplots(1, 2, figsize=(4.5 + 2.3 * len(networks), height), layout="constrained")
    for axis, (granularity, keys) in zip(axes, rows.items(), strict=True):
        places = np.array([_places([table[key][n] for key in keys], n) for n in networks]).T  # (methods, networks)
        order = np.argsort(np.nanmean(places, axis=1), kind="stable")
        picture = axis.imshow(places[order], cmap="RdYlGn_r", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(networks)), [TITLES[n].replace(", ", ",\n") for n in networks], fontsize=8)
        axis.set_yticks(range(len(keys)), [f"{keys[i][2]}  ({keys[i][1]})" for i in order], fontsize=8)
        for (i, key), (j, network) in product(enumerate(order), enumerate(networks)):
            ink = "white" if abs(places[key, j] - 0.5) > 0.4 else "black"  # both ends of the colours are dark
            axis.text(j, i, _cell(table[keys[key]][network]), ha="center", va="center", fontsize=7, color=ink)
        axis.set_title(f"{granularity}: before → after training on", fontsize=10)
    bar = figure.colorbar(picture, ax=axes, shrink=0.5, ticks=[0, 1])
    bar.ax.set_yticklabels(["best", "worst"])
    figure.suptitle("Every method at equal sparsity and equal training; colour: place within the column", fontsize=11)
    figure.savefig(path, dpi=120)


def _places(column: list[Found], network: str) -> list[float]:
    """Place from 0 (best) to 1 of every method in one network's column; NaN where it was not run."""
    sign = 1.0 if network == PERPLEXITY else -1.0
    values = [sign * statistics.mean(found.after) if found.after else math.nan for found in column]
    ordered = sorted(value for value in values if not math.isnan(value))
    last = max(len(ordered) - 1, 1)
    return [math.nan if math.isnan(value) else ordered.index(value) / last for value in values]


def _cell(found: Found) -> str:
    if not found.after:
        return "not possible" if found.note else ""
    return f"{_short(statistics.mean(found.before))} → {statistics.mean(found.after):.1f}"


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/methods/all_methods.csv"))
    args = parser.parse_args()
    table, dense = read(args.csv)
    networks = [name for name in SCENES if name in dense]
    print("dense: " + ", ".join(f"{TITLES[n]} {statistics.mean(dense[n]):.1f}" for n in networks))
    tables(table, networks)
    draw(table, networks, args.csv.with_suffix(".png"))


if __name__ == "__main__":
    main()
