"""Whole fronts: CPU seconds of tables and of one front, from 8 to 200 layers, and how often the metric is as expected.

    OMP_NUM_THREADS=1 python benchmarks/fronts.py layers
    OMP_NUM_THREADS=1 python benchmarks/fronts.py tables [--samples 1024]
    python benchmarks/fronts.py confidence FRONT MORE

``layers`` makes chains of 3x3 convolutions and residual networks of two-layer blocks, 64 channels wide, with errors
c_g · r² of random c, and times the front against MACs: its tables of costs, the sweep, and reading off 200 policies.
``tables`` times the errors of ResNet-20 by ``obc`` on pictures of 3x32x32, for all counts, and then one front against
MACs at 16 widths a group. ``confidence`` holds what a front expects of the metric to further policies, which a second
front of the same network and devices evaluated (``amcsearch front`` with more ``--evaluations``).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from amcsearch.core import ChannelGroup, Coupling, LayerKind, LayerSpec, NetworkSpec, PolicySpace, Side
from amcsearch.costs import CostGrid, Macs, ModelBytes, Params
from amcsearch.evaluation import Evaluator, errors_at_outputs
from amcsearch.graph import trace
from amcsearch.jobs.front import POINTS, SUMS
from amcsearch.methods import SELECTORS, Calibration, problem_of, select
from amcsearch.recovery import Reconstruction
from amcsearch.runs import FrontResult
from amcsearch.search import Allocator, Budget, FeasibleSet, removal_errors
from amcsearch.training import CLASS_IDS, batches_of
from amcsearch.training.models.residual import resnet20

LAYERS = (8, 25, 50, 100, 200)
MULTIPLES = (8, 4, 2)
WIDTH = 64

Result = TypeVar("Result")


def chain(layers: int) -> NetworkSpec:
    """Convolutions one after another; every width but the last is a group."""
    return _network(layers, [((i,), (i + 1,)) for i in range(layers - 1)])


def residual(layers: int) -> NetworkSpec:
    """Blocks of two convolutions about one stream: a group of the stream and one inside each block."""
    stream = (tuple(range(0, layers, 2)), tuple(range(1, layers)))
    return _network(layers, [stream, *(((i,), (i + 1,)) for i in range(1, layers - 1, 2))])


def _network(layers: int, groups: Sequence[tuple[Sequence[int], Sequence[int]]]) -> NetworkSpec:
    """Convolutions and groups, each by the layers that write it and those that read it."""
    channels = [3, *[WIDTH] * layers]
    specs = tuple(
        LayerSpec(f"c{i}", LayerKind.CONV, a, b, (3, 3), padding=(1, 1), in_size=(32, 32), out_size=(32, 32))
        for i, (a, b) in enumerate(pairwise(channels))
    )
    coupled = (
        (*(Coupling(f"c{i}", Side.OUT) for i in writes), *(Coupling(f"c{i}", Side.IN) for i in reads))
        for writes, reads in groups
    )
    return NetworkSpec(specs, tuple(ChannelGroup(f"g{n}", WIDTH, each) for n, each in enumerate(coupled)))


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return a result and the CPU seconds that it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def layers(options: argparse.Namespace) -> None:
    """Print CPU seconds of one front for networks of more and more layers and widths."""
    del options
    print("| network | layers | groups | widths | offered | tables of costs (s) | whole front (s) | policies |")
    print("|---|---|---|---|---|---|---|---|")
    for name, make in (("chain", chain), ("residual", residual)):
        for count in LAYERS:
            for multiple in MULTIPLES:
                network = make(count)
                grid = CostGrid(network, [Macs(), Params(), ModelBytes("float32")])
                space = PolicySpace.on_grid(network.groups, multiple)
                scales = np.random.default_rng(0).random(len(space.choices))
                errors = [c * (1.0 - kept / kept[-1]) ** 2 for c, kept in zip(scales, space.choices, strict=True)]
                feasible = FeasibleSet(space, grid, Budget({}))
                allocator, made = timed(lambda f=feasible: Allocator(f, sums=SUMS, axis="macs"))
                offered, ordered = timed(lambda a=allocator: a.offered)
                _, priced = timed(lambda a=allocator: a._problem)
                (kept, _), swept = timed(lambda a=allocator, e=errors: a.front(e, POINTS))
                tables = made + ordered + priced
                row = (name, count, len(network.groups), len(space.choices[0]), offered)
                seconds = (f"{tables:.3f}", f"{tables + swept:.3f}")
                print(f"| {' | '.join(map(str, (*row, *seconds, len(kept))))} |", flush=True)


def tables(options: argparse.Namespace) -> None:
    """Print CPU seconds of the error tables of ResNet-20, and of a front after."""
    torch.manual_seed(0)
    model = resnet20(in_channels=3).eval()
    x = torch.randn(options.samples, 3, 32, 32)
    traced = trace(model, x[:1])
    batches = batches_of(torch.utils.data.TensorDataset(x, torch.zeros(len(x), dtype=torch.long)), 128, "calibration")
    calibration = Calibration(model, traced, batches, CLASS_IDS)
    selection, seconds = timed(lambda: select(problem_of(calibration), SELECTORS["obc"]()))
    print(f"errors of all counts, {options.samples} samples: {seconds:.1f} s")
    reconstruction = Reconstruction(model, traced, selection.inputs.values(), "least_squares")
    evaluator = Evaluator(model, traced, selection.orders, None, batches, reconstruction=reconstruction)
    whole = PolicySpace.on_grid(traced.network.groups)
    known, seconds = timed(lambda: errors_at_outputs(evaluator, batches, whole, selection.errors))
    print(f"what of them reaches the outputs: {seconds:.1f} s")
    groups = traced.network.groups
    space = PolicySpace(groups, tuple(np.arange(1, 17) * (group.channels // 16) for group in groups))
    grid = CostGrid(traced.network, [Macs(), Params()])
    errors = removal_errors(space, known)
    feasible = FeasibleSet(space, grid, Budget({}))
    (kept, _), seconds = timed(lambda: Allocator(feasible, sums=SUMS, axis="macs").front(errors, POINTS))
    print(f"front against MACs, {len(groups)} groups of 16 widths: {seconds:.2f} s, {len(kept)} policies")


def confidence(options: argparse.Namespace) -> None:
    """Print how far further policies are from what a front expects of them."""
    front, more = (FrontResult.open(folder).summary for folder in (options.front, options.more))
    known = {each.policy for each in front.evaluated}
    further = [each for each in more.evaluated if each.policy not in known]
    expected = front.expected(np.array([each.error for each in further]))
    miss = np.abs(expected - [each.metric for each in further]) * front.judged_by.scale
    within = np.array([front.within(each.error) or 0.0 for each in further]) * front.judged_by.scale
    print(f"{front.confidence_text}; for all {len(more.evaluated)}: {more.rank_correlation:.2f}")
    share, off = np.mean(miss <= within), np.nanmean(miss)
    print(f"{len(further)} further policies: {share:.0%} within {np.mean(within):.2f} in the mean, off by {off:.2f}")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("layers").set_defaults(run=layers)
    command = commands.add_parser("tables")
    command.add_argument("--samples", type=int, default=1024)
    command.set_defaults(run=tables)
    command = commands.add_parser("confidence")
    command.add_argument("front", help="folder of a front")
    command.add_argument("more", help="folder of the same front with more evaluations")
    command.set_defaults(run=confidence)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
