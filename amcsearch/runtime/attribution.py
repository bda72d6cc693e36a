"""Whose time is it: nodes of ONNX Runtime's optimised graph → layers of the traced network.

1. Original graph: a node inside a layer's module (its name holds the module path) or fed by the layer's weight is
   that layer's; a node directly inside a module that computes attention is the attention's (``MODULE.attention``).
   Any other node (add, pool, activation, reshape) belongs to the layer it follows; before the first layer, to the
   one it feeds.
2. Optimised graph: fusions keep the name of a node or tensor of the original graph, with a suffix. Reorders and
   reshapes the runtime inserted belong to the layer they follow.

So every microsecond of a profile lands on exactly one layer, and the sum over layers is the sum over nodes.
"""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from amcsearch.runtime.onnx_export import WRAPPER
from amcsearch.runtime.session import make_session
from amcsearch.runtime.timing import bound_call

__all__ = ["LayerTime", "attribute_profile", "optimised_owners", "original_owners", "profile_layers"]

US_PER_MS = 1e3
KERNEL = "_kernel_time"
RUNS_A_ROUND = 6
WARM_UP_RUNS = 2  # ``bound_call`` runs the model once; the first profiled runs also fault their memory in


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Profiled time of one layer in one run, and how many executed nodes it is made of."""

    profiled_ms: float
    nodes: int


def _module_path(node_name: str, known: set[str]) -> str:
    """Dotted path of the deepest known module in a node name such as ``/network/blocks/blocks.0/conv/Conv``.

    The tracing exporter repeats the container's name for numbered children (``blocks/blocks.0``) and counts the calls
    of a module called again (``relu_1``).
    """
    parts = node_name.strip("/").split("/")[:-1]
    path, previous = "", ""
    for part in parts[1:] if parts and parts[0] == WRAPPER else parts:
        names = [part, part.removeprefix(f"{previous}."), re.sub(r"_\d+$", "", part)]
        found = next((p for n in names if (p := f"{path}.{n}".lstrip(".")) in known), None)
        if found is None:
            break
        path, previous = found, part
    return path


def _owner_by_weight(node: onnx.NodeProto, weights: Mapping[str, str], layers: set[str]) -> str | None:
    for name in node.input:
        parameter = str(weights.get(name, name)).removeprefix(f"{WRAPPER}.")
        for layer in (parameter, parameter.rpartition(".")[0]):
            if layer in layers:
                return layer
    return None


def _through_identities(graph: onnx.GraphProto) -> dict[str, str]:
    """Tensor → the initializer it is a copy or transpose of."""
    source = {tensor.name: tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in {"Identity", "Transpose"} and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
    return source


def _follow(nodes: Sequence[onnx.NodeProto], owners: list[str | None]) -> list[str | None]:
    """Fill gaps: from the latest producer among a node's inputs, else from its first consumer."""
    made_by: dict[str, int] = {}
    for i, node in enumerate(nodes):
        if owners[i] is None:
            producers = [made_by[name] for name in node.input if name in made_by]
            owned = [p for p in producers if owners[p] is not None]
            owners[i] = owners[max(owned)] if owned else None
        made_by.update(dict.fromkeys(node.output, i))
    wanted_by: dict[str, str] = {}
    for i in reversed(range(len(nodes))):
        if owners[i] is None:
            owners[i] = next((wanted_by[name] for name in nodes[i].output if name in wanted_by), None)
        owner = owners[i]
        if owner is not None:
            wanted_by.update(dict.fromkeys(nodes[i].input, owner))
    return owners


def original_owners(graph: onnx.GraphProto, layers: Iterable[str]) -> dict[str, str]:
    """Map every node name and every tensor a node writes to a layer name.

    Args:
        graph: an exported graph, node names holding module paths.
        layers: names of the layers, as in ``NetworkSpec``.
    """
    names = set(layers)
    own = {name.removesuffix(".attention"): name for name in names} | {name: name for name in names}
    known = {".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count(".") + 1)}
    weights = _through_identities(graph)
    owners: list[str | None] = []
    for node in graph.node:
        path = _module_path(node.name, known)
        by_weight = _owner_by_weight(node, weights, names)
        inside = by_weight is not None and by_weight.startswith(f"{path}." if path else "")
        owners.append(by_weight if inside else own.get(path))
    result: dict[str, str] = {}
    for node, owner in zip(graph.node, _follow(graph.node, owners), strict=True):
        if owner is not None:
            result.update(dict.fromkeys((node.name, *node.output), owner))
    return result


def _longest_known(name: str, owners: Mapping[str, str]) -> str | None:
    """Owner of the longest known name that ``name`` starts with: fusions only append."""
    known = name
    while known and known not in owners:
        cut = max(known.rfind("/"), known.rfind("_"), known.rfind("."))
        known = known[: max(cut, 0)]
    return owners.get(known)


def optimised_owners(graph: onnx.GraphProto, owners: Mapping[str, str]) -> list[str | None]:
    """Layer of each node of the optimised graph, None only where the graph has no layer at all."""
    found: list[str | None] = []
    for node in graph.node:
        by_output = next((owners[name] for name in node.output if name in owners), None)
        found.append(_longest_known(node.name, owners) or by_output)
    return _follow(graph.node, found)


def attribute_profile(
    events: Sequence[Mapping[str, Any]], nodes: Sequence[onnx.NodeProto], owners: Sequence[str | None], skip: int
) -> dict[str, LayerTime]:
    """Share a profile's node times out over layers.

    Args:
        events: the profiler's records, several runs one after the other.
        nodes, owners: the optimised graph's nodes and their layers.
        skip: first runs left out.

    A node's time is its mean over the fastest quarter of the runs: those nothing else disturbed. (A mean, because the
    profiler counts whole microseconds.)
    """
    runs: list[list[tuple[str, float]]] = [[]]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(KERNEL):
            runs[-1].append((event["name"].removesuffix(KERNEL), float(event["dur"])))
        elif event["name"] == "model_run":
            runs.append([])
    whole = [run for run in runs[skip:] if run and len(run) == len(runs[skip])]
    durations = np.array([[us for _, us in run] for run in whole])  # (runs, nodes)
    fastest = np.argsort(durations.sum(axis=1), kind="stable")[: max(1, len(whole) // 4)]
    mean_us = durations[fastest].mean(axis=0)
    queues: dict[str, list[str | None]] = defaultdict(list)
    for node, owner in zip(nodes, owners, strict=True):
        queues[node.name].append(owner)
    total: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    last = next((owner for owner in owners if owner is not None), "")
    for (name, _), us in zip(whole[0], mean_us, strict=True):
        last = (queues[name].pop(0) if queues[name] else last) or last
        total[last] = (total[last][0] + us / US_PER_MS, total[last][1] + 1)
    return {layer: LayerTime(float(ms), count) for layer, (ms, count) in total.items()}


class _ProfiledModel:
    """A profiled session of one model, with the owners of its optimised nodes."""

    def __init__(
        self, model: bytes, layers: Iterable[str], inputs: NDArray[np.generic], threads: int, prefix: Path
    ) -> None:
        optimised = prefix.with_suffix(".onnx")
        self._session = make_session(model, threads, profile=prefix, optimised=optimised)
        graph = onnx.load(str(optimised), load_external_data=False).graph
        self._nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        optimised.unlink()
        owners = original_owners(onnx.load_from_string(model).graph, layers)
        self._owners = optimised_owners(graph, owners)
        self.run = bound_call(self._session, inputs)

    def finish(self, skip: int) -> dict[str, LayerTime]:
        """Stop profiling and attribute the runs."""
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text())
        path.unlink()
        return attribute_profile(events, self._nodes, self._owners, skip)


def profile_layers(
    models: Sequence[bytes],
    layers: Sequence[Iterable[str]],
    inputs: NDArray[np.generic],
    *,
    threads: int,
    rounds: int,
    rng: np.random.Generator,
) -> list[dict[str, LayerTime]]:
    """Profile exported models in interleaved rounds and attribute each one's time to its layers.

    Layers that were fused away are absent. Times are inflated by the profiler: use them as shares.

    Args:
        models: serialised models that take the same input.
        layers: names of the layers of each.
        inputs: the input array, batch included.
        threads: threads inside an operator.
        rounds: every model runs ``RUNS_A_ROUND`` times in each, in a fresh random order, so that a spell of bad
            weather on a shared machine spoils some runs of every model and not all runs of one.
        rng: source of the orders.
    """
    with tempfile.TemporaryDirectory() as folder:
        profiled = [
            _ProfiledModel(model, names, inputs, threads, Path(folder) / f"model{i}")
            for i, (model, names) in enumerate(zip(models, layers, strict=True))
        ]
        for _ in range(rounds):
            for i in rng.permutation(len(profiled)):
                for _ in range(RUNS_A_ROUND):
                    profiled[i].run()
        return [one.finish(skip=WARM_UP_RUNS) for one in profiled]
