"""Progress of a run on stderr: a bar in a terminal, a line now and then in a log."""

import sys
from typing import Any

from tqdm import tqdm

from amcsearch.core import Trial, check_interrupt, digits, printable

__all__ = ["ProgressBar"]

LINES_PER_SEARCH = 20


class ProgressBar:
    """The ``Observer`` of a person: draws phases, epochs, trials with the best so far, and warnings."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._share = 0.0
        self._terminal = sys.stderr.isatty()

    def phase(self, text: str) -> None:
        """Begin a phase of the run."""
        self.close()
        self._say(f"• {text}")

    def warn(self, text: str) -> None:
        """Say something the user should know."""
        self._say(f"WARNING: {text}")

    def epoch(self, epoch: int, loss: float) -> None:
        """End an epoch of training."""
        self._say(f"  epoch {epoch}: loss {loss:.4f}")

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int) -> None:
        """End one evaluation, with the best so far."""
        best_text = "none yet" if best is None else f"{_costs(best)} {best.judged_by.word} {best.evaluation.metric:.4f}"
        if not self._terminal:
            if done == 1 or done == total or done % max(1, total // LINES_PER_SEARCH) == 0:
                self._say(f"  {trial.agent} trial {done}/{total}, best {best_text}")
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc=f"  {trial.agent}", unit="trial", file=sys.stderr, dynamic_ncols=True)
        self._bar.set_postfix_str(f"best {best_text}", refresh=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def progress(self, share: float, text: str) -> None:
        """Take a step of a measurement."""
        if share < self._share or share >= self._share + 1 / LINES_PER_SEARCH or share >= 1.0:
            self._say(f"  {share:4.0%} {text}")
            self._share = share

    def close(self) -> None:
        """End the bar, if one is drawn."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, text: str) -> None:
        check_interrupt()
        tqdm.write(printable(text), file=sys.stderr)
        sys.stderr.flush()


def _costs(trial: Trial) -> str:
    if "latency_ms" in trial.cost:
        return f"{digits(trial.cost['latency_ms'])} ms"
    return f"{trial.cost['macs']:.3g} MACs" if "macs" in trial.cost else ""
