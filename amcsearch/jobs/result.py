"""Results: the smaller network with its policy, trials and report, as a verb returns it and as ``load`` finds it."""

import html
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from torch import Tensor, nn

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.graph import duplicate, usual_modes
from amcsearch.jobs.delivered_files import check_files, save_network
from amcsearch.jobs.delivery import Exports, Finalist, choose, verify
from amcsearch.jobs.finetuning import Finetuned, fine_tune
from amcsearch.jobs.loading import Source, check_finished, smaller_network
from amcsearch.jobs.measuring import is_awaited, renew_kit
from amcsearch.jobs.network_check import onnx_settings
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.setup import Job
from amcsearch.jobs.summary import Origin, summarise
from amcsearch.jobs.user_training import training_folder, user_training
from amcsearch.reporting import render
from amcsearch.runs import (
    RunFolder,
    SparsifySummary,
    Summary,
    Verdict,
    expanded,
    read_densities,
    read_trials,
    writing,
)
from amcsearch.training import StateFile, load_tensors

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunResult", "SearchResult", "SparsifyResult", "deliver", "load"]

FRAME_HEIGHT: Final = 640  # pixels of the report in a notebook

Kind = TypeVar("Kind", Summary, SparsifySummary)


class RunResult:
    """The pruned network of a finished run, and what its run folder holds.

    Args:
        run: the folder.
        model: makes the network when it is first asked for.
    """

    def __init__(self, run: RunFolder, model: Callable[[], nn.Module]) -> None:
        self.run, self._make_model = run, model

    def __repr__(self) -> str:
        try:
            figures = f", {_figures(self.summary)}"
        except BadInputError:  # a damaged summary is no reason to fail while a value is shown
            figures = ""
        return f"{type(self).__name__}({str(self.folder)!r}{figures})"

    @property
    def folder(self) -> Path:
        """The run folder; a temporary one where no other was asked for (``save`` keeps it)."""
        return self.run.path

    @cached_property
    def model(self) -> nn.Module:
        """The pruned and fine-tuned network in eval mode, on the CPU; made in torch's own modes, not the caller's."""
        with usual_modes():
            return self._make_model()

    @cached_property
    def policy(self) -> PruningPolicy:
        """How many channels every group keeps."""
        return PruningPolicy.read(self.run.policy_json)

    @cached_property
    def summary(self) -> Summary | SparsifySummary:
        """What came of the run: the metric, costs and measured latency of each network.

        Raises:
            BadInputError: ``summary.json`` is missing or damaged.
        """
        return self.run.read_summary()

    @property
    def verdict(self) -> Verdict:
        """Whether each limit is met, missed or undecided, and what is to be said of the network and its files.

        Raises:
            BadInputError: as ``summary``.
        """
        return self.summary.judged

    def save(self, folder: Path | str) -> Path:
        """Copy the run folder to a new or empty folder, from which ``amcsearch.load`` brings the network back.

        Raises:
            BadInputError: the folder holds files, or cannot be written.
        """
        target = expanded(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BadInputError(f"cannot save to {target}: it is there already; name a new or an empty folder")
        with writing(target):
            shutil.copytree(self.folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        return target


class SearchResult(RunResult):
    """What ``search`` and ``prune`` return: the smaller network, its policy, and every trial."""

    @cached_property
    def summary(self) -> Summary:
        """Dense, pruned and fine-tuned, and how they came about; raises as ``RunResult.summary``."""
        return _summary(self.run, Summary)

    @cached_property
    def trials(self) -> "pd.DataFrame":
        """Every evaluation, one a row, with ``runs.TRIAL_COLUMNS``."""
        return read_trials(self.run.trials_csv)

    @cached_property
    def front(self) -> "pd.DataFrame":
        """The trials that no other is better than in everything; same columns."""
        return read_trials(self.run.pareto_csv)

    def _repr_html_(self) -> str:
        page = html.escape(render(self.run), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:{FRAME_HEIGHT}px;border:0"></iframe>'


class SparsifyResult(RunResult):
    """What ``sparsify`` returns: the sparse network, its masks, and the density of every tensor or group."""

    @cached_property
    def summary(self) -> SparsifySummary:
        """Dense, sparse and fine-tuned, and what is in use of what; raises as ``RunResult.summary``."""
        return _summary(self.run, SparsifySummary)

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Which weights (the tensor's shape), or which units of a group (n_units,), are in use: true where they are."""
        return {name: mask.bool() for name, mask in load_tensors(self.run.masks_safetensors).items()}

    @cached_property
    def densities(self) -> "pd.DataFrame":
        """What is left of every tensor or group: name, kept, total, density.

        Raises:
            BadInputError: as ``read_densities``.
        """
        return read_densities(self.run.densities_csv)


def _figures(summary: Summary | SparsifySummary) -> str:
    """The delivered network beside the dense one: ``accuracy 98.9% of 99.1%, macs 0.33x, latency 0.50x, met``."""
    dense, tuned = summary.dense.cost, summary.finetuned.cost
    metric = summary.metric
    delivered, whole = (metric.text(block.metric, 1).replace(" %", "%") for block in (summary.finetuned, summary.dense))
    parts = [f"{metric.word} {delivered} of {whole}"]
    parts += [f"{name} {tuned[name] / dense[name]:.2f}x" for name in ("macs", "params") if name in tuned]
    if isinstance(summary, Summary):
        ratio = summary.latency_ratio
        parts.append("latency not measured yet" if ratio is None else f"latency {ratio.median:.2f}x")
    else:
        share = summary.finetuned.nonzero_params / summary.dense.nonzero_params
        parts.append(f"nonzero parameters {share:.2f}x")
    return ", ".join(parts) + ("" if summary.verdict is None else f", {summary.verdict.state}")


def _summary(run: RunFolder, kind: type[Kind]) -> Kind:
    summary = run.read_summary()
    if not isinstance(summary, kind):
        raise BadInputError(
            f"{run.summary_json} holds a {type(summary).__name__}, but the run's other files go with a "
            f"{kind.__name__}; restore the file, or make the run again"
        )
    return summary


def load(folder: Path | str, model: nn.Module | None = None, *, source: Source = "auto") -> RunResult:
    """Open a finished run in any process; ``.model`` is its pruned network, with the same outputs to the last bit.

    Args:
        folder: run folder of ``search`` or ``prune`` (gives a ``SearchResult``) or ``sparsify`` (``SparsifyResult``).
        model: the dense network with any weights, where the run's own factory is not at hand; it is copied.
        source: without ``model``, ``"factory"`` makes the network by the run's factory, which runs its code;
            ``"program"`` reads the self-contained ``pruned.pt2``; ``"auto"`` takes the factory where it can be
            imported, else the program.

    Raises:
        BadInputError: no run, one that has not finished, an unknown source, or, when ``model`` is first read, a network
            that does not fit it.
    """
    run = RunFolder.open(expanded(folder))
    check_finished(run, source)
    kind = SparsifyResult if run.densities_csv.is_file() else SearchResult
    return kind(run, lambda: smaller_network(run, model, source))


def deliver(
    job: Job,
    run: RunFolder,
    phases: Phases,
    finalists: Sequence[Finalist],
    exports: Exports,
    origin: Origin | Callable[[nn.Module, nn.Module], Origin],
    *,
    is_measured: bool = False,
) -> SearchResult:
    """Fine-tune the chosen finalist, verify it and write what the run folder keeps.

    ``origin`` says who proposed the policy, or makes it from the network as pruned and as fine-tuned. Where a device
    that is not here measures, its kit is written too, unless ``is_measured`` says that it has done so.

    A fine-tuning that diverges at every learning rate delivers the network as pruned, and its summary says so.

    Raises:
        BadInputError: as ``verify``, or a training of the user's own that fails; the policy is kept.
        DeliveryError: a delivered file is not what was judged; all else is written.
    """
    chosen = choose(finalists)
    run.write_policy(chosen.trial.policy)  # kept where the training fails
    with phases("finetune", "Fine-tuning the chosen policy"):
        pruned = exports.pruned(chosen.trial.policy)
        tuned, training = _tuned(job, run, pruned, chosen.trial.policy, phases.observer)
    described = origin(pruned, tuned) if callable(origin) else origin
    described = replace(described, notes=(*described.notes, *training.notes), training=training.training)
    how = "Exporting" if is_awaited(job.config) else "Exporting, measuring"
    with phases("verify", f"{how} and reading the test split"):
        save_network(tuned, job.workload.example, run, onnx_settings(job.config), phases.observer.warn)
        outcome = verify(job, run, exports, tuned, chosen)
        if not is_measured:
            for text in renew_kit(run, exports.plan(finalists) if is_awaited(job.config) else None):
                phases.observer.warn(text)
    summary = summarise(job, described, finalists, outcome, phases.seconds, run)
    run.write_summary(summary)
    run.write_report(render(run))
    check_files(run, outcome.files)
    return SearchResult(run, lambda: tuned)


def _tuned(
    job: Job, run: RunFolder, pruned: nn.Module, policy: PruningPolicy, observer: Observer
) -> tuple[nn.Module, Finetuned]:
    """Return a fine-tuned copy of the pruned network, and what that came to; one that was killed goes on.

    Raises:
        BadInputError: as ``fine_tune``; of a training of the user's own it says how to go on with the policy.
    """
    store, model = _TrainingOfPolicy(StateFile(run.finetuning_state), policy), duplicate(pruned)
    try:
        training = fine_tune(
            job.config,
            job.finetune,
            job.workload,
            model,
            observer,
            store=store,
            given=job.given,
            folder=training_folder(run, job.config, job.given),
        )
    except BadInputError as error:
        if user_training(job.config, job.given) is None:
            raise
        raise type(error)(f"{error}; the policy is kept, go on with it: {_without_own_training(job, run)}") from error
    return model, training


def _without_own_training(job: Job, run: RunFolder) -> str:
    """Return how to train the policy by another training: a command, or a call where the network is in memory."""
    if job.given.model is None:
        return f"{run.prune_command} --set recovery.finetune.factory=null"
    call = f"amcsearch.prune(model, data, policy={str(run.policy_json)!r}, finetune=None)"
    return f"{call} with the same task and other settings"


class _TrainingOfPolicy:
    """A ``StateStore`` that knows by which policy the network was cut: finalists may be measured otherwise again."""

    def __init__(self, file: StateFile, policy: PruningPolicy) -> None:
        self.file, self.kept = file, dict(policy)

    def load(self) -> dict[str, Any] | None:
        stored = self.file.load()
        if stored is None or stored.get("kept") != self.kept:
            return None
        return dict(stored["training"])

    def save(self, state: dict[str, Any]) -> None:
        self.file.save({"kept": self.kept, "training": state})
