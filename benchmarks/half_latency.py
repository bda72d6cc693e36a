"""Half the measured latency: what does it cost in accuracy, over several seeds?

    python benchmarks/half_latency.py [--seeds 0 1 2] [--trials 100] CONFIG…

Runs the main job once a configuration and seed (a seed changes the data split, the training, the search and the
fine-tuning) without the random baseline, and prints test accuracy before and after beside the measured latency ratio
with its 95 % interval. The test split is read once, at the end of each run.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(config: str, seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """Run the main job in a process of its own and return its summary."""
    out = folder / f"{Path(config).stem}-{seed}"
    overrides = [f"seed={seed}", f"data.kwargs.seed={seed}", f"search.trials={trials}", "search.baseline=null"]
    command = [sys.executable, "-m", "amcsearch", "search", config, "--out", str(out)]
    for override in overrides:
        command += ["--set", override]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((out / "summary.json").read_text())  # type: ignore[no-any-return]


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=100)
    args = parser.parse_args()
    print("| network | seed | dense | fine-tuned | points | latency ratio (95 %) | predicted / measured | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for config in args.configs:
            points = []
            for seed in args.seeds:
                summary = run(config, seed, args.trials, Path(folder))
                dense, tuned, ratio = summary["dense"], summary["finetuned"], summary["latency_ratio"]
                points.append(100 * (tuned["accuracy"] - dense["accuracy"]))
                predicted = tuned["latency_ms_predicted"] / tuned["latency_ms_measured"]["median"]
                print(
                    f"| {Path(config).stem} | {seed} | {dense['accuracy']:.2%} | {tuned['accuracy']:.2%} "
                    f"| {points[-1]:+.2f} | {ratio['median']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f}) "
                    f"| {predicted:.3f} | {summary['seconds']['total']:.0f} |",
                    flush=True,
                )
            print(f"| {Path(config).stem} | mean | | | {statistics.mean(points):+.2f} | | | |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\npeak memory of one run: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
