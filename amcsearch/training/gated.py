"""Training with gates: the network runs on gated weights, and multipliers push the gates to a target."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.lagrangian import Lagrangian, target_at

__all__ = ["GatedTraining"]

Share = Callable[[Mapping[str, Tensor]], Tensor]
"""Densities by item → share of the dense cost that is expected to stay, a scalar; differentiable."""


class GatedTraining:
    """The ``TrainingHook`` of a gate: ``target`` is the share of the dense cost to reach, as ``share`` measures it."""

    def __init__(self, gate: Gate, method: GateMethod, share: Share, target: float, steps: int) -> None:
        self._gate, self._method, self._share, self._target, self._steps = gate, method, share, target, steps
        self._optimizer = gate.optimizer()
        self._lagrangian = Lagrangian(method.multiplier_rate)
        self._now, self._asked = torch.ones(()), 1.0

    def forward(self, model: nn.Module, inputs: Tensor, step: int) -> Any:
        """Run the network on its gated weights."""
        progress = step / self._steps
        self._gate.begin_step(progress)
        self._asked = target_at(progress, self._target, self._method.target_warmup)
        self._optimizer.zero_grad(set_to_none=True)
        with self._gate.noise(model):
            return functional_call(model, self._gate.tensors(), (inputs,))

    def penalty(self) -> Tensor | float:
        """Return the Lagrangian's term, or the gate's own penalty by the multiplier."""
        self._now = self._share(self._gate.density())
        if self._gate.drive == "expected":
            return self._lagrangian.penalty(self._now, self._asked)
        if self._gate.drive == "fixed":
            return self._gate.penalty()
        return self._gate.penalty() * self._lagrangian.strength(float(self._now), self._asked)

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Step the network and the gate; the multipliers climb."""
        del step
        optimizer.step()
        self._optimizer.step()
        self._gate.end_step()
        self._lagrangian.ascend(float(self._now.detach()), self._asked)

    def clock(self, step: int) -> int:
        """As it is."""
        return step

    def state(self) -> dict[str, Any]:
        """Gate, its optimiser and the multipliers."""
        multipliers = vars(self._lagrangian)
        return {"gate": self._gate.state_dict(), "optimizer": self._optimizer.state_dict(), **multipliers}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self._gate.load_state_dict(state["gate"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name in vars(self._lagrangian):
            setattr(self._lagrangian, name, state[name])
