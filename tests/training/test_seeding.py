"""Seeding for a while: what is drawn inside, what is as before after it, and what devices are asked."""

import random

import numpy as np
import pytest
import torch

from amcsearch.training.seeding import seeded


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def test_a_seed_gives_the_same_draws_and_leaves_the_generators_as_they_were() -> None:
    with seeded(7):
        first = draws()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = draws()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    with seeded(7):
        assert draws() == first
    assert draws() == expected


@pytest.mark.parametrize("has_device", [False, True])
def test_devices_that_there_are_not_are_not_seeded(monkeypatch: pytest.MonkeyPatch, has_device: bool) -> None:
    everywhere: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_device)
    monkeypatch.setattr(torch, "manual_seed", everywhere.append)
    with seeded(7):
        pass
    assert everywhere == [7] * has_device
