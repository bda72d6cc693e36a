"""Vectors to match: outputs (…, D) and targets (…, D); the loss is 1 minus the mean cosine.

An embedding is used for its direction, so its length is left free.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.core import METRICS, BadInputError, Metric
from amcsearch.graph import Tree
from amcsearch.training.task import Guess, Meter, Task, judged_tensor, others_apart
from amcsearch.training.tasks.meters import Mean

__all__ = ["Embedding"]


@dataclass(frozen=True)
class Embedding(Task):
    """Vectors to match by their direction.

    Args:
        output: path of the vectors among the model's outputs; null is the first tensor.
    """

    output: str | None = None
    is_reference = True

    @property
    def metric(self) -> Metric:
        """See ``Task.metric``."""
        return METRICS["cosine"]

    def loss(self, output: Tree, targets: Tree) -> Tensor:
        """See ``Task.loss``."""
        return 1.0 - self._cosines(output, targets)[0].mean()

    def distillation(self, student: Tree, teacher: Tree, targets: Tree, temperature: float, alpha: float) -> Tensor:
        """(1 - a)·(1 - cos to the targets) + a·(1 - cos to the teacher's vectors); no temperature."""
        del temperature
        guide = judged_tensor(teacher, self.output)
        judged = (1.0 - alpha) * self.loss(student, targets) + alpha * self.loss(student, guide)
        return judged + alpha * others_apart(student, teacher, self.output)

    def meter(self) -> Meter:
        """See ``Task.meter``."""
        return Mean(self._cosines)

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:
        """See ``Task.sample_values``."""
        cosines, _ = self._cosines(output, targets)
        return cosines.double().reshape(len(cosines), -1).mean(1)

    def draw(self, output: Tree, targets: Tree, generator: torch.Generator) -> Tensor:
        """The vectors themselves with unit normal noise."""
        vectors = judged_tensor(output, self.output).detach()
        noise = torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype)
        return (vectors + noise.to(vectors.device)).reshape(targets.shape)

    def guess(self, output: Tree, targets: Tree) -> Guess | None:
        """See ``Task.guess``."""
        del output, targets
        return Guess(1.0, 0.0, 0.0, "vectors that have nothing to do with the targets have 0 %")

    def _cosines(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        """(…, D) and (…, D) → (…,), all of them known."""
        vectors = judged_tensor(output, self.output)
        if not isinstance(targets, Tensor) or vectors.ndim < 2 or vectors.shape != targets.shape:
            shape = f"of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
            raise BadInputError(
                f"outputs of shape {tuple(vectors.shape)} do not fit targets {shape}; "
                "vectors are matched with vectors of the same shape"
            )
        cosines = F.cosine_similarity(vectors, targets, dim=-1)
        return cosines, torch.ones_like(cosines, dtype=torch.bool)
