"""Which networks can be pruned, and how much of each?

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--only NAME …] [--family FAMILY …] [--again] [--keep FILE] \
        [--results FILE]
    OMP_NUM_THREADS=1 python benchmarks/coverage.py --speed
    python benchmarks/coverage.py --page

For every network of ``coverage_networks.py``: CPU seconds of ``trace``, channel groups, the share of MACs in layers of
which a group can take channels, what is left alone and why; a random half of every group removed and the outputs beside
those of the masked network, in torch and in ONNX Runtime; MACs beside those of ``torch.utils.flop_counter``; and
Torch-Pruning's own pruner on the same module.

Each network runs in a process of its own, one thread, with a limit on time and memory, and is one line of the results
file (JSON lines). Networks that have a line are left out unless ``--again``. ``--page`` writes ``docs/coverage.md`` and
its picture from the file. ``--speed`` adds the CPU seconds of ``trace`` at the published picture size. ``--keep`` takes
over what another results file says of Torch-Pruning. Needs ``torchvision`` and ``transformers``.
"""

import argparse
import copy
import json
import logging
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from coverage_networks import NETWORKS, Network, load_libraries
from coverage_page import write_page
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amcsearch.costs.compute import macs
from amcsearch.graph import Batch, Trace, fold_weights, masked, remove, tensors_of_tree, trace
from amcsearch.runtime import OnnxModule, exported

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "coverage.jsonl"
SECONDS, GIBIBYTES = 420, 14
# of CPU time: Torch-Pruning's walk does not end where slices feed each other, as in rotary embeddings
TP_SECONDS = {"transformers": 3, "classification": 60, "segmentation": 60}
NAMED = 6  # layers left alone that are named
PUBLISHED = {"resnet50": 224, "densenet121": 224, "inception_v3": 299}  # pixels of a side
RUNS = 3

Record = dict[str, Any]


class Delivers(nn.Module):
    """A network of keyword arguments as one of tensors that returns its first tensor: the logits, not by-products."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the first floating-point tensor of what the network returns."""
        output = self.network(**dict(zip(self.names, tensors, strict=True)))
        return next(tensor for _, tensor in tensors_of_tree(output) if tensor.is_floating_point())


def built(network: Network) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module in eval mode and its inputs.

    Vectors are drawn at random, and the small matrices of transformers at a scale at which every layer shows in the
    output: no mistake is multiplied by zero.
    """
    torch.manual_seed(0)
    model, inputs = network.build().eval(), network.inputs()
    if hasattr(model, "config") and hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.uniform_(-0.5, 0.5) if name.endswith("bias") else tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1 and network.family == "transformers":
                tensor.normal_(0, tensor[0].numel() ** -0.5)
    if "" not in inputs:
        model = Delivers(model, tuple(inputs)).eval()
    fold_weights(model, Batch(tuple(inputs.values())))  # weight norm and standardised weights, as a job does
    return model, tuple(inputs.values())


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All floating-point tensors that a network returns."""
    with torch.no_grad():
        return [tensor for _, tensor in tensors_of_tree(model(*inputs)) if tensor.is_floating_point()]


def gap(expected: list[Tensor], given: list[Tensor]) -> float:
    """Largest difference as a share of the largest output."""
    scale = max(float(tensor.abs().max()) for tensor in expected)
    return max(float((a - b).abs().max()) for a, b in zip(expected, given, strict=True)) / max(scale, 1e-30)


def traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Record, Trace]]:
    """Trace the module and say what can be pruned."""
    start = time.process_time()
    found = trace(model, Batch(inputs))
    seconds = time.process_time() - start
    layers = found.network.layers
    total = sum(map(macs, layers))
    reached = {coupling.layer for group in found.network.groups for coupling in group.couplings}
    left = sorted((x for x in layers if x.name not in reached and macs(x)), key=macs, reverse=True)
    yield (
        {
            "seconds": round(seconds, 2),
            "layers": len(layers),
            "groups": len(found.network.groups),
            "macs": total,
            "reached": round(sum(macs(x) for x in layers if x.name in reached) / max(total, 1), 4),
            "left": [[x.name, round(macs(x) / max(total, 1), 4), found.reason(x.name)] for x in left[:NAMED]],
            "uncounted": [x.reason for x in found.skipped if "not counted" in x.reason],
        },
        found,
    )


def halved(model: nn.Module, found: Trace, inputs: tuple[Tensor, ...]) -> tuple[Record, nn.Module]:
    """Remove a random half of every group and compare with the masked network."""
    rng = np.random.default_rng(1)
    kept = {
        name: np.sort(units[rng.permutation(len(units))[: (len(units) + 1) // 2]].ravel())
        for name, units in found.units.items()
    }
    with masked(model, found, kept):
        expected = outputs(model, inputs)
    small = remove(model, found, kept)
    return {"removal": gap(expected, outputs(small, inputs))}, small


def in_onnx(small: nn.Module, inputs: tuple[Tensor, ...]) -> Record:
    """Export the smaller network and compare it with torch."""
    expected = outputs(small, inputs)
    given = list(outputs(OnnxModule(exported(small, Batch(inputs))), inputs))
    return {"onnx": gap(expected, given)}


def counted(model: nn.Module, inputs: tuple[Tensor, ...]) -> Record:
    """MACs by torch, with attention and recurrence as plain products: it does not see the fused ones.

    Nor has it a formula for the products of grouped experts, where every row meets one matrix.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped_flops})
    with counter, sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        model(*inputs)
    return {"macs_torch": counter.get_total_flops() // 2}


def grouped_flops(rows: tuple[int, ...], experts: tuple[int, ...], *_: object, **__: object) -> int:
    """FLOPs of (T, K) rows by matrices (E, K, N)."""
    return 2 * rows[0] * rows[1] * experts[-1]


def by_torch_pruning(model: nn.Module, inputs: tuple[Tensor, ...], found: Trace) -> Iterator[Record]:
    """Torch-Pruning's pruner as its documentation uses it: half of every group, the last layer kept, heads declared.

    ``tp_only`` names, for each of its groups that shrinks a width of a layer that none of ours does, that width.
    """
    layers = {x.name: macs(x) for x in found.network.layers}
    shrunk = {(c.layer.split("#")[0], c.side.name.lower()) for group in found.network.groups for c in group.couplings}
    model = copy.deepcopy(model)
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[last_layer(model, inputs)],
        num_heads=heads_of(model),
        output_transform=lambda output: sum(t.sum() for _, t in tensors_of_tree(output) if t.is_floating_point()),
    )
    names = {id(module): name for name, module in model.named_modules()}
    groups, reached, only = 0, set(), []
    for group in pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    ):
        groups += 1
        reached |= {names.get(id(item.dep.target.module), "") for item in group}
        widths = [width for width in map(partial(width_of, names), group) if width and width not in shrunk]
        only += [f"{layer}:{side}" for layer, side in widths[:1]]
    attended = {f"{name.rpartition('.')[0]}.attention" for name in reached}
    share = sum(n for name, n in layers.items() if name.split("#")[0] in reached | attended) / sum(layers.values())
    yield {"tp_groups": groups, "tp_reached": round(share, 4), "tp_only": only}
    pruner.step()
    outputs(model, inputs)
    yield {"tp_runs": True}


def width_of(names: Mapping[int, str], item: Any) -> tuple[str, str] | None:
    """The layer and side, ``in`` or ``out``, that a dependency of Torch-Pruning shrinks; None of what has no products.

    The input and the output of a layer over each channel by itself are one width.
    """
    module = item.dep.target.module
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or id(module) not in names:
        return None
    return names[id(module)], "in" if "in_channels" in item.dep.handler.__name__ else "out"


def last_layer(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The convolution or linear layer that runs last."""
    ran: list[nn.Module] = []
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in model.modules() if isinstance(m, kinds)]
    outputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return ran[-1]


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """Query, key and value projections with the number of heads that their module states."""
    names = ("query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "qkv")
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        count = next(
            (getattr(module, a, None) for a in ("num_attention_heads", "num_heads", "n_heads", "n_head")), None
        )
        for name, child in module.named_children():
            if isinstance(count, int) and isinstance(child, nn.Linear) and name in names:
                heads[child] = count
    return heads


def measured(name: str, of_other: Record) -> Iterator[Record]:
    """Yield what is known of a network after every step; a step that fails is named with its error.

    ``of_other``: what is known of Torch-Pruning already, which is then not measured.
    """
    record: Record = {"name": name, "family": NETWORKS[name].family, "machine": machine(), "date": str(date.today())}
    record |= {"commit": commit(), **of_other}
    model, inputs = built(NETWORKS[name])
    record["parameters"] = sum(p.numel() for p in model.parameters())
    small: list[nn.Module] = []
    traces: list[Trace] = []

    def removal() -> Iterator[Record]:
        entry, module = halved(model, traces[0], inputs)
        small.append(module)
        yield entry

    def following() -> Iterator[Record]:
        for entry, found in traced(model, inputs):
            traces.append(found)
            yield entry

    def other() -> Iterator[Record]:
        yield from by_torch_pruning(model, inputs, traces[0])

    steps: dict[str, Callable[[], Iterator[Record]]] = {
        "trace": following,
        "count": lambda: iter([counted(model, inputs)]),
        "removal": removal,
        "onnx": lambda: iter([in_onnx(small[0], inputs)]),
    } | ({} if of_other else {"tp": other})
    for step, run in steps.items():
        try:
            signal.setitimer(signal.ITIMER_PROF, TP_SECONDS[record["family"]] if step == "tp" else 0)
            for entry in run():
                record |= entry
                yield record
        except Exception as error:  # whatever a network, an exporter or another library raises
            record[f"{step}_error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            yield record
    signal.setitimer(signal.ITIMER_PROF, 0)
    record["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    yield record


def speed(name: str, pixels: int) -> Record:
    """Least CPU seconds of ``trace`` in a few runs, of a network of torchvision at its published picture size."""
    model = NETWORKS[f"torchvision/{name}"].build().eval()
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        trace(model, torch.randn(1, 3, pixels, pixels))
        seconds.append(time.process_time() - start)
    record = {"name": f"speed/{name}", "family": "speed", "pixels": pixels, "seconds": round(min(seconds), 2)}
    return record | {"machine": machine(), "commit": commit(), "date": str(date.today())}


def machine() -> str:
    """The processor, the release of torch, and that one thread was used."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, one thread, torch {torch.__version__}"


def commit() -> str:
    """The commit that is measured, with a + where files differ from it; empty outside a repository."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changes = subprocess.run([*git, "status", "--porcelain", "amcsearch"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def stop(*_: object) -> None:
    """Stop what has spent its time."""
    raise TimeoutError("not done within its CPU time")


def run_one(name: str, results: Connection, of_other: Record) -> None:
    """Send the record of a network after every step; the last counts."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # exporters print from C++
    os.dup2(nothing, 2)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30, GIBIBYTES << 30))
    for record in measured(name, of_other):
        results.send(record)


def in_a_process(name: str, seconds: int, of_other: Record) -> Record:
    """Run a network in a process of its own and return what it knew when it ended or was stopped."""
    record: Record = {"name": name, "family": NETWORKS[name].family}
    context = multiprocessing.get_context("fork")  # the libraries are loaded once
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=run_one, args=(name, sending, of_other))
    process.start()
    sending.close()
    end = time.monotonic() + seconds
    try:
        while receiving.poll(max(0.0, end - time.monotonic())):
            record = receiving.recv()
        record["ended"] = f"stopped after {seconds} s"
    except EOFError:  # the process has ended
        process.join()
        if process.exitcode:
            record["ended"] = f"exit {process.exitcode}"
    process.kill()
    process.join()
    return record


def read(path: Path) -> dict[str, Record]:
    """Return the last record of every network of a results file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {record["name"]: record for record in map(json.loads, lines)}


def store(record: Record, path: Path) -> None:
    """Put a record into a results file, in the place of an earlier one of its network, and print it."""
    records = read(path) | {record["name"]: record}
    path.write_text("".join(json.dumps(each) + "\n" for each in records.values()), encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "left"}), flush=True)


def main() -> None:
    """Measure what has no result yet, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks, by any part of their names")
    parser.add_argument("--family", nargs="+", default=[], choices=sorted({n.family for n in NETWORKS.values()}))
    parser.add_argument("--again", action="store_true", help="measure networks that have a result")
    parser.add_argument("--keep", type=Path, help="results whose figures of Torch-Pruning are taken over")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit for one network")
    parser.add_argument("--speed", action="store_true", help="time trace at the published picture size, nothing else")
    parser.add_argument("--page", action="store_true", help="write docs/coverage.md and its picture, measure nothing")
    given = parser.parse_args()
    if given.page:
        write_page(list(NETWORKS), read(given.results), ROOT / "docs")
        return
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    load_libraries()
    if given.speed:
        for name, pixels in PUBLISHED.items():
            store(speed(name, pixels), given.results)
        return
    known, kept = read(given.results), read(given.keep) if given.keep else {}
    for name, network in NETWORKS.items():
        wanted = (not given.only or any(part == name if "/" in part else part in name for part in given.only)) and (
            not given.family or network.family in given.family
        )
        if wanted and (given.again or name not in known):
            of_other = {key: x for key, x in kept.get(name, {}).items() if key.startswith("tp_")}
            record = in_a_process(name, given.seconds, of_other)
            store(record, given.results)


if __name__ == "__main__":
    main()
