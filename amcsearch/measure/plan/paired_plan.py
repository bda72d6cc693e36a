"""The plan of a paired measurement: pruned networks of one run beside the dense one, timed and nothing else.

Each model's samples come with those of the dense network from the same rounds, spread over several passes. No kernel is
profiled and no table can be made of the result. The result of a plan is of the run that made it: its hash covers every
model, and the numbers of weights alone are made up on the device, on which no latency depends.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.measure.kit.kit import REFERENCE, KitModel, KitPlan
from amcsearch.measure.kit.kit_results import KitResult, ModelResult
from amcsearch.measure.plan.network_record import PAIRED
from amcsearch.runtime import CPU, SAMPLE_MS, InputSpec, PairedLatency, paired_samples

__all__ = ["PairedSetting", "check_speed", "paired_latencies", "paired_plan"]

DENSE: Final = "dense"
NETWORK: Final = "network"
PASSES: Final = 5
MOST_MACS_PER_S: Final = 1e14  # a hundred times what the matrix units of a core reach today


@dataclass(frozen=True)
class PairedSetting:
    """How networks are called: samples in a call, data type, rounds in all, threads, and full name of the provider."""

    batch: int
    dtype: str
    rounds: int
    seed: int
    threads: int = 1
    provider: str = CPU


def paired_plan(
    dense: bytes,
    others: Mapping[str, bytes],
    inputs: Sequence[NDArray[np.generic]],
    setting: PairedSetting,
    policies: Mapping[str, PruningPolicy],
) -> KitPlan:
    """Return the plan that measures ONNX models beside the dense one.

    Args:
        dense: serialised model.
        others: serialised models by name, which take the same inputs.
        inputs: the arrays of one call, in order, batch included.
        setting: of the calls.
        policies: of the pruned ones, by name; they come back in the result.

    Raises:
        BadInputError: a model that cannot be read, or is named ``dense``.
    """
    if DENSE in others:
        raise BadInputError(f"paired measurement: a model is named {DENSE!r}, as the dense one; name it otherwise")
    reference = KitModel(DENSE, dense, NETWORK, REFERENCE, profiled=False)
    models = [KitModel(name, model, NETWORK, "pruned", profiled=False) for name, model in others.items()]
    specs = tuple(_spec(array) for array in inputs)
    return KitPlan(
        (reference, *models),
        setting.batch,
        setting.dtype,
        {NETWORK: specs[0] if len(specs) == 1 else specs},
        passes=min(PASSES, setting.rounds),
        rounds=-(-setting.rounds // PASSES),
        sample_ms=SAMPLE_MS,
        info={"purpose": PAIRED, "policies": {name: dict(policy) for name, policy in policies.items()}},
        seed=setting.seed,
        threads=setting.threads,
        provider=setting.provider,
    )


def _spec(array: NDArray[np.generic]) -> InputSpec:
    """What the device needs to make such an input: whole numbers below the largest and normal numbers."""
    is_real = np.issubdtype(array.dtype, np.floating)
    high = None if is_real else max(int(array.max(initial=0)) + 1, 2)
    return InputSpec(tuple(array.shape), str(array.dtype), high)


def paired_latencies(result: KitResult, names: Sequence[str], place: str) -> list[PairedLatency]:
    """Return the latency of each named model beside the dense one, in the order of the names.

    Raises:
        BadInputError: the result is of a plan for a table, lacks one of the models, or has not timed it; ``place``
            names it.
    """
    if result.plan["info"].get("purpose") != PAIRED:
        raise BadInputError(
            f"{place} is the result of a table kit; make a table of it with `amcsearch table build`, or measure this "
            "run with the kit of `amcsearch verify kit RUN -o verify.pyz`"
        )
    models = {model.id: model for model in result.models}
    return [_latency(models.get(name), name, place) for name in names]


def _latency(model: ModelResult | None, name: str, place: str) -> PairedLatency:
    if model is None or not model.passes:
        why = "does not know" if model is None else "has not timed"
        raise BadInputError(f"{place} {why} {name}; run the kit again with the same -o, it goes on where it stopped")
    dense_ms = np.concatenate([timed.reference_ms for timed in model.passes])
    pruned_ms = np.concatenate([timed.samples_ms for timed in model.passes])
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    return paired_samples(dense_ms, pruned_ms, seed)


def check_speed(latency: PairedLatency, macs: float, batch: int, place: str) -> None:
    """Refuse a dense network that is faster than any device computes it.

    Raises:
        BadInputError: names the rate and the bound.
    """
    rate = macs * batch / (latency.dense_ms / 1e3)
    if rate > MOST_MACS_PER_S:
        raise BadInputError(
            f"{place}: the dense network's {latency.dense_ms:.3g} ms a call are {rate:.3g} MACs a second, at most "
            f"{MOST_MACS_PER_S:.0e} are possible; bring the file as the kit wrote it"
        )
