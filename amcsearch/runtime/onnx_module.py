"""An ONNX model as a torch module, so that what is delivered is judged by the code that judges the network."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amcsearch.runtime.session import make_session, outputs_of_calls

__all__ = ["OnnxModule"]


class OnnxModule(nn.Module):
    """Runs an ONNX model of one input on any number of samples; its first output is the result.

    Raises:
        BadInputError: as ``make_session``.
    """

    def __init__(self, model: Path | bytes, threads: int = 1) -> None:
        super().__init__()
        self._session = make_session(model, threads)

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) → (N, …), in calls of the model's own batch."""
        calls = outputs_of_calls(self._session, x.numpy())
        return torch.from_numpy(np.concatenate([first for first, *_ in calls])[: len(x)])
