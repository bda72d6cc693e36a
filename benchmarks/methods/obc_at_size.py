"""CPU seconds and memory of ``obc``: statistics of the layers' inputs, and the ranking made from them.

    python benchmarks/methods/obc_at_size.py NETWORK [--pictures 512] [--plain]

NETWORK is resnet20 (32x32), a classifier of torchvision such as resnet50, or efficientnet-lite0 (the package
efficientnet-lite-pytorch), the last two at 224x224. Weights and pictures are random: neither decides the time.
``--plain`` also gathers the statistics as a textbook would, the same rows and all their products in float64, and
compares: the largest difference of a Gram matrix, as a share of its mean diagonal, and how many groups have the same
order.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from amcsearch.evaluation.evaluator import default_batch_size
from amcsearch.graph import HeldBatches, evaluating
from amcsearch.graph.tracing.trace import Trace, trace
from amcsearch.methods.layer_inputs import POSITIONS
from amcsearch.methods.patches import patches
from amcsearch.methods.products import are_shifts_cheaper
from amcsearch.methods.selector import Calibration, Problem, problem_of
from amcsearch.methods.selectors.obc import Obc
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.models import MODELS


def network(name: str) -> tuple[nn.Module, int]:
    """Return a network and its image size."""
    if name == "resnet20":
        return MODELS[name](in_channels=3).eval(), 32
    if name == "efficientnet-lite0":
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(name).eval(), 224
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval(), 224


def plain_grams(model: nn.Module, batches: HeldBatches, problem: Problem) -> dict[str, Tensor]:
    """Return every reader's Gram matrix, from double precision alone."""
    inputs = {reader.inputs.layer: reader.inputs for readers in problem.readers.values() for reader in readers}
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, int] = dict.fromkeys(inputs, 0)
    sums: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}

    def add(layer: str, x: Tensor) -> None:
        module = model.get_submodule(layer)
        moved = isinstance(module, nn.Conv2d) and are_shifts_cheaper(module, x, POSITIONS)
        part = patches(module, x, None if moved else POSITIONS, generator).double()
        rows[layer] += part.shape[1]
        sums[layer] = sums.get(layer, 0) + part.sum(1)
        products[layer] = products.get(layer, 0) + part.mT @ part

    with ExitStack() as stack, evaluating(model), torch.no_grad():
        for layer in inputs:
            module = model.get_submodule(layer)
            hook = module.register_forward_pre_hook(lambda _, args, layer=layer: add(layer, args[0]))
            stack.callback(hook.remove)
        for batch in batches:
            batch.through(model)
    grams = {}
    for layer, its in inputs.items():
        mean = sums[layer] / rows[layer] if its.bias is not None or its.norm is not None else 0.0 * sums[layer]
        grams[layer] = products[layer] / rows[layer] - mean[:, :, None] * mean[:, None]
    return grams


def compare(problem: Problem, grams: dict[str, Tensor], orders: dict[str, np.ndarray]) -> None:
    """Print how far the statistics and the orders are from the plain ones."""
    readers = {
        group: tuple(
            replace(reader, inputs=replace(reader.inputs, gram=grams[reader.inputs.layer])) for reader in of_group
        )
        for group, of_group in problem.readers.items()
    }
    plain = Obc().orders(Problem(readers, problem.calibration))
    same = sum(np.array_equal(plain[group], orders[group]) for group in orders)
    errors = [
        float((grams[reader.inputs.layer] - reader.inputs.gram).abs().max() / reader.inputs.gram[0].diagonal().mean())
        for of_group in problem.readers.values()
        for reader in of_group
    ]
    print(f"largest difference {max(errors):.1e} of the mean diagonal; same order in {same} of {len(orders)} groups")


def timed(what: str, call: Callable[[], object]) -> object:
    """Call, and print CPU and wall seconds and the load."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    load = os.getloadavg()[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{what:22} {time.process_time() - cpu:7.1f} CPU s {time.perf_counter() - wall:7.1f} s "
        f"peak {peak:.2f} GiB, load {load:.1f}",
        flush=True,
    )
    return result


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, size = network(args.network)
    pictures = torch.randn(args.pictures, 3, size, size)
    traced: Trace = trace(model, pictures[:1])
    batches = HeldBatches.of(pictures, None, 1)
    batches = HeldBatches.of(pictures, None, default_batch_size(batches))
    calibration = Calibration(model, traced, batches, CLASS_IDS)
    print(f"{args.network}: {args.pictures} pictures {size}x{size}, {len(traced.network.groups)} groups", flush=True)
    problem = timed("statistics", lambda: problem_of(calibration))
    assert isinstance(problem, Problem)
    orders = timed("ranking", lambda: Obc().orders(problem))
    if args.plain:
        grams = timed("statistics, float64", lambda: plain_grams(model, batches, problem))
        compare(problem, grams, orders)


if __name__ == "__main__":
    main()
