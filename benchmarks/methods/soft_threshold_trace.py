"""What STR's thresholds do from step to step, and where the accuracy goes.

    python benchmarks/methods/soft_threshold_trace.py [--network resnet20] [--seed 0]

Trains with the gate as the table does and prints, every few steps, the share of weights that is left beside the share
asked for, the factor on the decay, and the thresholds' range over layers; then test accuracy of the thresholded network
as it is, cut to the target, and after the last epoch of training on at several learning rates. Beside it stands a
network of the same mask whose weights are W where STR's are W minus the threshold: under batch norm the smaller weights
turn by a larger angle at the same learning rate.
"""

import argparse
import copy
import math
from dataclasses import replace

import torch
from scenes import SCENES, configured, loaded
from torch import nn

from amcsearch.config import Config
from amcsearch.jobs.finetuning import recalibrate
from amcsearch.jobs.sparsify.sparse_training import fixed
from amcsearch.jobs.workload import Workload, training_recipe
from amcsearch.methods.gates.soft_threshold import SoftThreshold
from amcsearch.methods.mask_schedule import Masks
from amcsearch.methods.weight_choice import keep_overall, n_kept
from amcsearch.training.loop import evaluate, fit
from amcsearch.training.reading import batches_of
from amcsearch.training.sparsification import GatedTraining, bake
from amcsearch.training.splits import length

EVERY = 4


class Watched(GatedTraining):
    """Prints what the thresholds did."""

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """As ``GatedTraining.update``."""
        factor = self._lagrangian.strength(float(self._now), self._asked)
        super().update(optimizer, step)
        if step % EVERY == 0:
            thresholds = torch.sigmoid(self._gate.state_dict()["s"])
            print(f"| {step} | {float(self._now):.3f} | {self._asked:.3f} | {factor:.1f} "
                  f"| {float(thresholds.min()):.4f} to {float(thresholds.max()):.4f} |")  # fmt: skip


def main() -> None:
    """Train, print, cut, train on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20", choices=list(SCENES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scene = SCENES[args.network]
    config, network = configured(scene, args.seed), loaded(scene, args.seed)
    model, test = copy.deepcopy(network.model), batches_of(network.splits.test)
    recipe, samples = training_recipe(config.sparsify.training), length(network.splits.train, "train")
    method = SoftThreshold()
    gate = method.attach(model, network.trace, samples)
    count = sum(t.numel() for t in gate.tensors().values())

    def share(densities: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes = {name: t.numel() for name, t in gate.tensors().items()}
        return torch.stack([densities[name] * size for name, size in sizes.items()]).sum() / count

    steps = math.ceil(samples / recipe.batch_size) * recipe.epochs
    hook = Watched(gate, method, share, 1.0 - scene.weights, steps)  # type: ignore[arg-type]
    print("| step | left | asked | factor on the decay | thresholds |\n|---|---|---|---|---|")
    fit(model, network.splits.train, recipe, seed=args.seed, hook=hook)
    scores = gate.scores()
    kept = keep_overall(scores, n_kept(count, scene.weights))
    unshrunk = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in gate.final().items():
            model.get_parameter(name).copy_(tensor)
    recalibrate(config, network, model)
    print(f"\nas trained: accuracy {evaluate(model, test)[1]:.3f}\n")
    print("| weights | norm | cut | learning rate x 1 | x 0.3 | x 0.1 | x 0.03 |\n|---|---|---|---|---|---|---|")
    for title, one in (("W - threshold", model), ("W", unshrunk)):
        bake(one, kept)
        recalibrate(config, network, one)
        norm = math.sqrt(sum(float(one.get_parameter(name).detach().square().sum()) for name in kept))
        tuned = (f"{_tuned(config, network, one, kept, factor):.3f}" for factor in (1.0, 0.3, 0.1, 0.03))
        print(f"| {title} | {norm:.1f} | {evaluate(one, test)[1]:.3f} | {' | '.join(tuned)} |", flush=True)


def _tuned(config: Config, workload: Workload, model: nn.Module, kept: Masks, factor: float) -> float:
    """Return test accuracy after one epoch at ``factor`` times the configured learning rate."""
    recipe, twin = training_recipe(config.sparsify.training), copy.deepcopy(model)
    recipe = replace(recipe, epochs=1, learning_rate=factor * recipe.learning_rate)
    fit(twin, workload.splits.train, recipe, seed=config.seed, hook=fixed(twin, kept))
    return evaluate(twin, batches_of(workload.splits.test))[1]


if __name__ == "__main__":
    main()
