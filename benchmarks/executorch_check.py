"""A search of the digits network with ExecuTorch, the runtime's contract, and its latencies beside ONNX Runtime's.

    pip install 'amcsearch[executorch,test]'
    OMP_NUM_THREADS=1 python benchmarks/executorch_check.py [--trials 4] [--rounds 100]

Some minutes: few policies, one epoch of fine-tuning. It prints how far ``pruned.pte`` agrees with torch on the test
split, and dense and delivered latency in both runtimes, each pair from the same rounds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import amcsearch
from amcsearch.cli.main import main as command
from amcsearch.runtime import OnnxRuntime, Runtime, arrays_of, measure_many
from amcsearch.runtime.executorch_runtime import ExecuTorchRuntime
from amcsearch.testing import RuntimeContract
from amcsearch.training.models import resnet20

SETTINGS = ("device.runtime=executorch", "device.table=null", "budget={macs: 0.5x}", "recovery.finetune.epochs=1")


class TestExecuTorch(RuntimeContract):
    """The contract of a runtime; pytest collects it from this file."""

    def make(self) -> Runtime:
        """Return the runtime on one thread."""
        return ExecuTorchRuntime()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contract and the search, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, help="policies to evaluate (default 4)")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of a measurement (default 100)")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [part for text in (*SETTINGS, f"device.rounds={asked.rounds}") for part in ("--set", text)]
        code = command(["search", "digits", "--trials", str(asked.trials), "--out", str(run), *settings])
        if code:
            return code
        summary = json.loads((run / "summary.json").read_text())
        for file in summary["files"]:
            print(f"{file['name']}: differs by {file['relative_diff']:.1e} of the outputs' scale on {file['samples']}")
        print(f"warnings: {summary['warnings']}")
        _compare(run, asked.rounds)
    return int(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", __file__]))


def _compare(run: Path, rounds: int) -> None:
    """Print the latency of the dense and the delivered network in both runtimes, on the same machine at once."""
    x, dense, pruned = torch.randn(1, 1, 32, 32), resnet20(in_channels=1).eval(), amcsearch.load(run).model.eval()
    for name, runtime in (("executorch", ExecuTorchRuntime()), ("onnxruntime", OnnxRuntime())):
        files = [runtime.exported(network, x) for network in (dense, pruned)]
        (pair,) = measure_many(files[0], files[1:], arrays_of(x), runtime=runtime, rounds=rounds)
        print(
            f"{name} {runtime.version()}: dense {pair.dense_ms:.3f} ms, delivered {pair.pruned_ms:.3f} ms, "
            f"{pair.ratio:.3f}x ({pair.ratio_low:.3f} to {pair.ratio_high:.3f})"
        )


if __name__ == "__main__":
    sys.exit(main())
