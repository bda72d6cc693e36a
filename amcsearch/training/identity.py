"""What was judged and on what: a network by its weights and by what it computes, data by some of its samples.

Names of files and factories do not tell networks apart: a module that a factory imports may change. Weights and samples
are therefore kept as digests, and as numbers beside them, since the same seed gives other last bits on a machine with
other vector instructions or threads. Equal digests are equal; else the numbers are compared within a tolerance. The
numbers of a tensor t are |t| and the sum of t_j s_j over fixed signs s_j: a change of one in n values of usual size
moves the second by |t| / sqrt(n). What a network computes are its outputs for a few real samples.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import UserCode
from amcsearch.graph import Batch, PerSample, as_batch, evaluating, first_tensor, tensors_of_tree
from amcsearch.runs import MetricRecord, StoredDocument
from amcsearch.training.reading import read_in_order
from amcsearch.training.seeding import seeded
from amcsearch.training.splits import (
    SPLITS,
    Changed,
    Samples,
    is_in_memory,
    is_stackable,
    length,
    probe_rows,
    read,
)

__all__ = [
    "PROBES",
    "TRAIN_SAMPLES",
    "Identity",
    "NetworkRecord",
    "SplitRecord",
    "SplitRecorder",
    "TensorRecord",
    "differences",
    "fingerprint",
    "network_difference",
    "read_parts",
    "record_network",
    "record_split",
    "repeats_by_seed",
    "rows_that_count",
    "same_bytes",
]

TRAIN_SAMPLES: Final = 1024
"""Samples of a train split that is not in memory which count."""
REREAD: Final = 8  # of these at most, read again to see whether they change
CHUNK: Final = 1024  # samples at a time, of those in memory …
CHUNK_BYTES: Final = 2**25  # … or as many as take so much, since checks hold a few copies of them …
READ: Final = 32  # … and of those that are read
PROBES: Final = 8  # samples whose outputs are kept
OUTPUTS: Final = 512  # numbers of these outputs that are kept
SAME_TENSOR: Final = 1e-5  # share of a tensor's norm within which its numbers are the same
SAME_OUTPUTS: Final = 1e-4  # share of the largest output within which outputs are the same
NAMED: Final = 3  # tensors in a message before "and n more"

_SIGNS: Final = np.random.default_rng(0).integers(0, 2, 2**20).astype(np.float64) * 2.0 - 1.0


@dataclass(frozen=True)
class TensorRecord(StoredDocument):
    """A tensor: its shape and type, a digest of its bytes, its norm, and its product with fixed signs."""

    shape: tuple[int, ...]
    dtype: str
    digest: str
    norm: float
    product: float


@dataclass(frozen=True)
class NetworkRecord(StoredDocument):
    """A network: the tensors of its state dict by name, and what it gives for a few samples."""

    tensors: Mapping[str, TensorRecord]
    outputs: tuple[float, ...]


@dataclass(frozen=True)
class SplitRecord(StoredDocument):
    """A split: how many samples it has, and those of them that count, stacked.

    ``inputs`` are None where two readings by one seed differ.
    """

    samples: int
    inputs: TensorRecord | None
    targets: TensorRecord


@dataclass(frozen=True)
class Identity(StoredDocument):
    """All that decides a result.

    ``settings`` is a digest of the configuration without what it names; ``named`` are digests of what it names or was
    handed over in its place, by key. ``network`` is as it was before any training here, ``trained`` as it was after
    ``model.pretrain``. ``metric`` is what the task judges by, for pages of the run before it has a summary.
    """

    settings: str
    named: Mapping[str, str]
    network: NetworkRecord
    splits: Mapping[str, SplitRecord]
    trained: NetworkRecord | None = None
    metric: MetricRecord | None = None


def record_network(model: nn.Module, inputs: Tensor | Batch) -> NetworkRecord:
    """Describe a network by its weights, and by its outputs for the first of some samples.

    Raises:
        BadInputError: it cannot take the inputs.
    """
    tensors = {name: _record(tensor) for name, tensor in model.state_dict().items()}
    batch = as_batch(inputs)
    parameter = next(model.parameters(), torch.empty(0))
    probe = batch.chosen(range(min(PROBES, batch.size))).to(parameter.device)
    with (
        UserCode(f"{type(model).__name__}, given {probe.size} samples,"),
        seeded(0),
        evaluating(model),
        torch.no_grad(),
    ):
        outputs = first_tensor(probe.through(model)).double().cpu().flatten()
    kept = np.unique(np.linspace(0, len(outputs) - 1, min(len(outputs), OUTPUTS)).round().astype(np.int64))
    return NetworkRecord(tensors, tuple(outputs[torch.from_numpy(kept)].tolist()))


def record_split(dataset: Samples, name: str, seed: int) -> SplitRecord:
    """Describe a split by its length and its samples: of a train split that is not in memory up to 1,024 of them.

    Raises:
        BadInputError: as ``read``.
    """
    recorder = SplitRecorder(length(dataset, name))
    rows = rows_that_count(dataset, name)
    for _, batch in read_parts(dataset, rows, name, seed):
        recorder.add(batch)
    return recorder.record(repeats=repeats_by_seed(dataset, rows, name, seed))


def rows_that_count(dataset: Samples, name: str, limit: int = TRAIN_SAMPLES) -> NDArray[np.int64]:
    """All samples of a split; of a train split that is not in memory ``limit``, spread evenly."""
    count = length(dataset, name)
    return probe_rows(dataset, count if name != "train" or is_in_memory(dataset) else limit, name)


def read_parts(
    dataset: Samples, rows: NDArray[np.int64], name: str, seed: int
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield some samples in parts, with their numbers; random transforms follow the seed."""
    in_memory = is_in_memory(dataset)
    size = 1 if not is_stackable(dataset) else _chunk(dataset, rows, name) if in_memory else READ
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    steady = dataset if in_memory else Changed(dataset, seed=seed)
    yield from zip(parts, read_in_order(steady, parts, name), strict=True)


def _chunk(dataset: Samples, rows: NDArray[np.int64], name: str) -> int:
    """Samples in memory that are looked at together."""
    sample = read(dataset, rows[:1], name)
    tensors = [*sample.inputs.values(), *(tensor for _, tensor in tensors_of_tree(sample.targets))]
    return max(1, min(CHUNK, CHUNK_BYTES // max(1, sum(tensor.nbytes for tensor in tensors))))


def repeats_by_seed(dataset: Samples, rows: NDArray[np.int64], name: str, seed: int) -> bool:
    """Whether the first of some samples are the same when they are read by the same seed again."""
    if is_in_memory(dataset):
        return True
    again = [rows[i : i + 1] for i in range(max(1, min(REREAD, len(rows) // 4)))]
    steady = Changed(dataset, seed=seed)
    pairs = zip(*(read_in_order(steady, again, name) for _ in range(2)), strict=True)
    return all(same_bytes(a, b) for first, second in pairs for a, b in zip(*_tensors(first, second), strict=True))


def _tensors(*batches: Batch) -> list[list[Tensor]]:
    return [list(batch.inputs.values()) for batch in batches]


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same; NaN is the same as NaN."""
    bytes_of = [tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.shape == right.shape and torch.equal(*bytes_of)


class SplitRecorder:
    """Makes the record of a split from its batches, one after the other."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._inputs: dict[str, _Recorder] = {}
        self._targets: dict[str, _Recorder] = {}

    def add(self, batch: Batch) -> None:
        """Go on with the next batch."""
        for path, tensor in batch.inputs.items():
            self._inputs.setdefault(path, _Recorder()).add(tensor)
        is_ragged = isinstance(batch.targets, PerSample)
        for path, tensor in tensors_of_tree(batch.targets):
            key = path.partition(".")[2] if is_ragged else path
            self._targets.setdefault(key, _Recorder()).add(tensor.reshape(-1) if is_ragged else tensor)

    def record(self, *, repeats: bool) -> SplitRecord:
        """Return what the batches are together; ``repeats`` says whether another reading gives the same inputs."""
        return SplitRecord(self._samples, _together(self._inputs) if repeats else None, _together(self._targets))


def _together(recorders: Mapping[str, "_Recorder"]) -> TensorRecord:
    """One record of several tensors: that of a single one is its own."""
    records = {path: recorder.record() for path, recorder in recorders.items()}
    if len(records) == 1:
        return next(iter(records.values()))
    digest = hashlib.blake2b(digest_size=16)
    for path, record in records.items():
        digest.update(f"{path} {record.shape} {record.digest}".encode())
    return TensorRecord(
        (),
        " ".join(record.dtype for record in records.values()),
        digest.hexdigest(),
        math.hypot(*(record.norm for record in records.values())),
        math.fsum(record.product for record in records.values()),
    )


def _record(tensor: Tensor) -> TensorRecord:
    recorder = _Recorder()
    recorder.add(tensor)
    return recorder.record()


class _Recorder:
    """Describes a tensor that comes in parts along its first axis."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._squares, self._product = 0.0, 0.0
        self._position = 0  # numbers so far
        self._shape: list[int] = []
        self._dtype = ""

    def add(self, tensor: Tensor) -> None:
        """Go on with the next part."""
        self._shape = [self._shape[0] + len(tensor), *self._shape[1:]] if self._shape else list(tensor.shape)
        self._dtype = str(tensor.dtype).removeprefix("torch.")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if len(flat):
            self._digest.update(flat.view(torch.uint8).numpy().data)
        start = 0
        while start < len(flat):
            block, offset = divmod(self._position, len(_SIGNS))
            values = flat[start : start + len(_SIGNS) - offset].double().numpy()
            self._squares += float(values @ values)
            weight = 1 + block % 7  # so that blocks cannot change places
            self._product += float(values @ _SIGNS[offset : offset + len(values)]) * weight
            self._position += len(values)
            start += len(values)

    def record(self) -> TensorRecord:
        """Return what the parts are together."""
        norm = math.sqrt(self._squares)
        return TensorRecord(tuple(self._shape), self._dtype, self._digest.hexdigest(), norm, self._product)


def _is_same(before: TensorRecord, now: TensorRecord) -> bool:
    if (before.shape, before.dtype) != (now.shape, now.dtype):
        return False
    if before.digest == now.digest:
        return True
    if not math.isfinite(before.norm):
        return False
    bound = SAME_TENSOR * before.norm
    return _close(before.norm, now.norm, bound) and _close(before.product, now.product, bound)


def _close(before: float, now: float, bound: float) -> bool:
    """Whether two numbers are the same within a bound; what is not finite is the same as itself alone."""
    if not (math.isfinite(before) and math.isfinite(now)):
        return not (math.isfinite(before) or math.isfinite(now))
    return abs(before - now) <= bound


def network_difference(before: NetworkRecord, now: NetworkRecord, state: str, *, same_inputs: bool = True) -> str:
    """Say in words what tells two networks apart; nothing where they are the same.

    ``state`` names their weights: ``initial``, ``trained``. Outputs are compared where both had the ``same_inputs``.
    """
    names = [*before.tensors, *(name for name in now.tensors if name not in before.tensors)]
    shapes = {name: (_shape(before, name), _shape(now, name)) for name in names}
    reshaped = [f"{name}: {was}, now {is_now}" for name, (was, is_now) in shapes.items() if was != is_now]
    if reshaped:
        return f"the structure of the network has changed ({_some(reshaped)})"
    changed = [name for name in names if not _is_same(before.tensors[name], now.tensors[name])]
    if changed:
        return f"the {state} weights of the network have changed ({_some(changed)})"
    if same_inputs and not _same_outputs(before.outputs, now.outputs):
        return "what the network computes has changed, though its weights have not (its forward, or a module in it)"
    return ""


def _shape(record: NetworkRecord, name: str) -> str:
    return str(record.tensors[name].shape) if name in record.tensors else "none"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _same_outputs(before: Sequence[float], now: Sequence[float]) -> bool:
    if len(before) != len(now):
        return False
    bound = SAME_OUTPUTS * max((abs(value) for value in before if math.isfinite(value)), default=0.0)
    return all(_close(a, b, bound) for a, b in zip(before, now, strict=True))


def _split_difference(before: SplitRecord, now: SplitRecord) -> str:
    """Say what of a split has changed, or nothing."""
    if before.samples != now.samples:
        return f"samples ({before.samples}, now {now.samples})"
    changed = [] if _is_same(before.targets, now.targets) else ["targets"]
    if before.inputs is not None and now.inputs is not None:
        changed = ([] if _is_same(before.inputs, now.inputs) else ["inputs"]) + changed
    elif before.inputs is not now.inputs:
        changed = ["inputs", *changed]
    return " and ".join(changed)


def _data_differences(before: Mapping[str, SplitRecord], now: Mapping[str, SplitRecord]) -> list[str]:
    """Name the splits whose data have changed, those together of which the same has changed."""
    splits: dict[str, list[str]] = {}
    for name in (split for split in SPLITS if split in before and split in now):
        splits.setdefault(_split_difference(before[name], now[name]), []).append(name)
    return [
        f"the {part} of the {', '.join(names)} split{'s' * (len(names) > 1)} have changed"
        for part, names in splits.items()
        if part
    ]


def differences(before: Identity, now: Identity) -> list[str]:
    """Say in words what tells two jobs apart, before any training: settings, what is named, network, data."""
    keys = sorted({*before.named, *now.named})
    apart = [] if before.settings == now.settings else ["the settings have changed"]
    apart += [f"what {key} names has changed" for key in keys if before.named.get(key) != now.named.get(key)]
    of_data = _data_differences(before.splits, now.splits)
    difference = network_difference(before.network, now.network, "initial", same_inputs=not of_data)
    return [text for text in (*apart, difference, *of_data) if text]


def fingerprint(identity: Identity) -> str:
    """Twelve hexadecimal digits of an identity, the same in every process that has equal digests.

    Outputs count to three digits of the largest.
    """
    networks = [identity.network] + ([identity.trained] if identity.trained else [])
    parts = {
        "settings": identity.settings,
        "named": dict(identity.named),
        "tensors": [{name: record.digest for name, record in network.tensors.items()} for network in networks],
        "outputs": [_rounded(network.outputs) for network in networks],
        "splits": {name: _digests(record) for name, record in identity.splits.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _rounded(outputs: Sequence[float]) -> list[int | None]:
    scale = max((abs(value) for value in outputs if math.isfinite(value)), default=1.0) or 1.0
    return [round(1000 * value / scale) if math.isfinite(value) else None for value in outputs]


def _digests(record: SplitRecord) -> list[int | str | None]:
    return [record.samples, record.inputs.digest if record.inputs else None, record.targets.digest]
