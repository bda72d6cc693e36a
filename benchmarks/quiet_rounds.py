"""How many quiet rounds decide? A network timed beside a copy of itself, whose true ratio is 1, on a restless core.

    OMP_NUM_THREADS=1 python benchmarks/quiet_rounds.py record FOLDER --core 1 [--busy 0.8 0.2]... [--sample-ms 5]
    python benchmarks/quiet_rounds.py judge FOLDER...

``record`` pins itself to a core, starts busy loops there that run and rest for so many seconds on average, and times a
network of two convolutions and ResNet-20, each beside a copy. Each pair is loaded anew after 400 rounds: two copies of
a small network differ by up to 4 % throughout, by where they lie in memory. ``judge`` cuts the rounds into overlapping
windows of 100 to 1100, and tells by the share and the number of quiet rounds how far the interval misses the truth: 1
for ResNet-20, and for the small network the median ratio of all rounds of its pair.

Results: ``latency_prediction.md``.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from amcsearch.graph import as_batch
from amcsearch.runtime.export import OnnxSettings, exported
from amcsearch.runtime.onnx_runtime import OnnxRuntime
from amcsearch.runtime.paired_latency import BLOCK, median_interval, quiet_rounds, time_interleaved
from amcsearch.training.models import resnet20

ROUNDS, PAUSE_S = 400, 0.08  # of a pair; loads come and go faster than those that a pause of 0.6 s outlasts
SIZES = (100, 200, 300, 400, 600, 1100)
SHARES = (0.0, 0.101, 0.12, 0.15, 0.20, 0.25, 1.0)  # the lowest tenth is quiet whatever it is
COUNTS = (0, 20, 30, 10**6)
LOOP = """
import random, sys, time
on, off = map(float, sys.argv[1:])
while True:
    end = time.monotonic() + random.expovariate(1 / on)
    while time.monotonic() < end:
        sum(range(1000))
    time.sleep(random.expovariate(1 / off) if off else 0.0)
"""


def networks():
    """Name, file and input of each network."""
    small = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    for name, model, side in (("small", small, 16), ("resnet20", resnet20(num_classes=10, in_channels=3), 32)):
        x = torch.zeros(1, 3, side, side)
        yield name, exported(model.eval(), as_batch(x), OnnxSettings()), x.numpy()


def record(args):
    """Write the samples of each network's pairs."""
    os.sched_setaffinity(0, {args.core})
    args.folders[0].mkdir(parents=True, exist_ok=True)
    loops = [subprocess.Popen([sys.executable, "-c", LOOP, *map(str, busy)]) for busy in args.busy]
    try:
        for name, file, x in networks():
            pairs, end = [], time.monotonic() + args.seconds
            while time.monotonic() < end:
                pairs.append(_pair(file, x, args.sample_ms))
            np.savez(args.folders[0] / f"{name}.npz", **{str(i): pair for i, pair in enumerate(pairs)})
            print(name, len(pairs), "pairs, load", os.getloadavg())
    finally:
        for loop in loops:
            loop.kill()


def _pair(file, x, sample_ms):
    """Samples (2, rounds) of two copies."""
    pair, rng, blocks = [OnnxRuntime().load(file) for _ in range(2)], np.random.default_rng(0), []
    for _ in range(ROUNDS // BLOCK):
        blocks.append(time_interleaved(pair, x, BLOCK, sample_ms, rng))
        time.sleep(PAUSE_S)
    return np.concatenate(blocks, axis=1)


class Window(NamedTuple):
    """Of which pair, how many quiet rounds and their share, the ratio and by how much its interval misses the truth."""

    pair: str
    quiet: int
    share: float
    ratio: float
    missed: float


def windows(folders, rng):
    """Cut windows out of all that was recorded."""
    for path in (path for folder in folders for path in sorted(folder.glob("*.npz"))):
        for number, (one, other) in np.load(path).items():
            truth = 1.0 if "resnet20" in path.stem else float(np.median(other / one))
            for size in SIZES:
                for start in range(0, len(one) - size + 1, max(size // 4, 25)):
                    at = slice(start, start + size)
                    quiet = quiet_rounds(one[at], other[at])
                    ratios = (other[at] / one[at])[quiet] / truth
                    ratio, low, high = (float(value[0]) for value in median_interval(ratios[None], rng, 400))
                    missed = max(low - 1.0, 1.0 - high, 0.0)
                    yield Window(f"{path}/{number}", int(quiet.sum()), float(quiet.mean()), ratio, missed)


def judge(args):
    """Print a row for each share and number of quiet rounds."""
    every = list(windows(args.folders, np.random.default_rng(0)))
    print("| quiet share | quiet rounds | windows | pairs | interval misses | by more than 1 % | at most | ratios |")
    for low, high in itertools.pairwise(SHARES):
        for least, most in itertools.pairwise(COUNTS):
            chosen = [w for w in every if low <= w.share < high and least <= w.quiet < most]
            if chosen:
                ratios = [w.ratio for w in chosen]
                missed = [w.missed for w in chosen]
                print(
                    f"| {low:.0%} to {high:.0%} | {least} to {most - 1} | {len(chosen)} "
                    f"| {len({w.pair for w in chosen})} | {sum(m > 0 for m in missed)} "
                    f"| {sum(m > 0.01 for m in missed)} | {max(missed):.1%} | {min(ratios):.3f} to {max(ratios):.3f} |"
                )


def main():
    """Record or judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("record", "judge"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=38.0)
    parser.add_argument("--sample-ms", type=float, default=5.0)
    parser.add_argument("--busy", type=float, nargs=2, action="append", default=[], metavar=("ON", "OFF"))
    args = parser.parse_args()
    (record if args.verb == "record" else judge)(args)


if __name__ == "__main__":
    main()
