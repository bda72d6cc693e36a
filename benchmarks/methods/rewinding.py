"""Lottery tickets from scratch: to which step should the survivors go back, and was the dense network stable there?

    python benchmarks/methods/rewinding.py [--seeds 0 1 2] [--rewinds 0 0.01 0.07 0.25] [--epochs 6] [--sparsity 0.9]

A small residual network (8 layers, 8 channels) is trained from its first weights on the 8x8 digits, pruned by half of
what remains, rewound and trained again, until 90 % of its single weights are gone; each training has about ``epochs``
epochs at a peak learning rate of 0.1. Stability, after Frankle et al. 2019 (arXiv 1912.05671): two copies of the dense
network after the share k of its training go on with different shuffles; the barrier is by how much the test error
halfway between them exceeds the mean of theirs. Prints means and deviations over seeds.
"""

import argparse
import copy
import math
import statistics
from collections.abc import Mapping

import torch
from scenes import seeded
from torch import Tensor, nn

from amcsearch.evaluation.proxy import recalibrate_batch_norm
from amcsearch.methods.mask_schedule import Plan
from amcsearch.methods.schedules.lottery import Lottery, ticket_counts
from amcsearch.methods.weights import sparse_weights
from amcsearch.pipeline.network import Network, load_network
from amcsearch.training.data import stacked
from amcsearch.training.loop import TrainingRecipe, evaluate, fit
from amcsearch.training.masked import MaskedTraining, bake
from amcsearch.training.splits import length

OVERRIDES = ("data.kwargs.size=8", "model.pretrain=null")
RATE = 0.5


def recipe(epochs: int) -> TrainingRecipe:
    """Return that of the dense training and of every round."""
    return TrainingRecipe(epochs, 0.1, batch_size=32)


def ticket(network: Network, seed: int, rewind_to: float, epochs: int, sparsity: float) -> float:
    """Test accuracy, %, of the last ticket."""
    model = copy.deepcopy(network.model)
    weights = sparse_weights(model, network.trace)
    count = sum(w.numel() for w in weights.values())
    rounds = len(ticket_counts(count, round((1.0 - sparsity) * count), RATE)) + 1
    whole = recipe(epochs * rounds)
    steps = whole.epochs * math.ceil(length(network.splits.train, "train") / whole.batch_size)

    def scores() -> Mapping[str, Tensor]:
        return {name: weight.detach().abs() for name, weight in weights.items()}

    hook = MaskedTraining(weights, Lottery(RATE, rewind_to), Plan(steps, count, sparsity), scores)
    fit(model, network.splits.train, whole, seed=seed, hook=hook)
    bake(model, hook.masks)
    return 100 * evaluate(model, *stacked(network.splits.test))[1]


def barrier(network: Network, seed: int, epochs: int, first: int) -> float:
    """Test error, points, halfway between two copies that part after ``first`` epochs, above the mean of theirs."""
    test, train = stacked(network.splits.test), network.splits.train
    start = copy.deepcopy(network.model)
    if first:  # the head of the same schedule: constant rate up to where they part
        fit(start, train, TrainingRecipe(first, 0.1, batch_size=32, schedule="constant"), seed=seed)
    ends = []
    for shuffle in (1, 2):
        end = copy.deepcopy(start)
        fit(end, train, recipe(epochs), seed=1000 * shuffle + seed, first_epoch=first)
        ends.append(end)
    middle = copy.deepcopy(start)
    states = [end.state_dict() for end in ends]
    middle.load_state_dict({k: (v + states[1][k]) / 2 if v.is_floating_point() else v for k, v in states[0].items()})
    _renewed(middle, stacked(train)[0])
    middle_error, *errors = (100 * (1 - evaluate(model, *test)[1]) for model in (middle, *ends))
    return middle_error - statistics.mean(errors)


def _renewed(model: nn.Module, inputs: Tensor) -> None:
    """Take batch-norm statistics anew: those of an average of weights are no average of statistics."""
    recalibrate_batch_norm(model, inputs, 256)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rewinds", type=float, nargs="+", default=[0.0, 0.01, 0.07, 0.25])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sparsity", type=float, default=0.9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks = {seed: load_network(seeded("configs/sparsify/digits-l0.yaml", seed, OVERRIDES)) for seed in args.seeds}
    print("| rewound to | accuracy, % |\n|---|---|")
    for share in args.rewinds:
        found = [ticket(network, seed, share, args.epochs, args.sparsity) for seed, network in networks.items()]
        print(f"| {share:.0%} | {statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} |", flush=True)
    print("\n| copies part after epoch | barrier, points |\n|---|---|")
    for first in (0, 1, 2):
        found = [barrier(network, seed, args.epochs, first) for seed, network in networks.items()]
        print(
            f"| {first} of {args.epochs} | {statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
