"""The global random generators of torch, numpy and Python: seeded for a while, and then as they were before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["reseed", "seeded"]

_NUMPY_SEEDS = 2**32


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all three, and restore them on leaving: what factories and random transforms draw repeats by ``seed``."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    is_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if is_cuda else []
    with torch.random.fork_rng(devices=devices):
        _seed_torch(seed)
        reseed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _seed_torch(seed: int) -> None:
    """Seed torch's generators: that of the CPU alone where there is no other device.

    ``torch.manual_seed`` also keeps the seed, with the stack of its caller, for each kind of device that was not used
    yet. That takes milliseconds, and every sample that is read is seeded.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def reseed(seed: int) -> None:
    """Seed numpy and Python alone, whose state no stored training holds."""
    np.random.seed(seed % _NUMPY_SEEDS)  # noqa: NPY002
    random.seed(seed)
