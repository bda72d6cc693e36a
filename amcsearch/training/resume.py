"""The state of a training in one file, from which a killed training goes on after its last whole epoch."""

from pathlib import Path
from typing import Any

import torch

from amcsearch.core import OUT, BadInputError
from amcsearch.runs import replacing
from amcsearch.training.tensor_files import read_torch

__all__ = ["StateFile"]


class StateFile:
    """A ``StateStore`` in a file of torch's, read with ``weights_only``; written beside its place and renamed."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def load(self) -> dict[str, Any] | None:
        """Return the state saved last, None where there is no file.

        Raises:
            BadInputError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            state = read_torch(self.path, "training state")
        except BadInputError as error:
            raise BadInputError(f"cannot read {self.path}: it is damaged; delete it to train anew") from error
        if not isinstance(state, dict):
            raise BadInputError(f"cannot read {self.path}: it holds a {type(state).__name__}; delete it to train anew")
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file.

        Raises:
            BadInputError: it cannot be written.
        """
        try:
            with replacing(self.path) as partial, partial.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # torch's writer, on a full disk
            raise BadInputError(f"cannot write {self.path}: {error}; free the disk, or name another {OUT}") from error
