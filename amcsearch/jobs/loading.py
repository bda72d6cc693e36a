"""The smaller network of a run, back in any process: from its factory, from a model in memory, or from its program.

A policy fixes the shapes of the smaller network, whichever channels went: the dense network is cut to these shapes and
takes the run's weights. The program (``torch.export``) needs neither the network's source nor this package.
"""

import warnings
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from amcsearch.config import load
from amcsearch.core import BadInputError, PruningPolicy, UserCode
from amcsearch.graph import Batch, Tree, fold_weights, remove, trace
from amcsearch.jobs.example_file import read_example
from amcsearch.jobs.workload import copied, made_by_factory
from amcsearch.runs import FrontFiles, RunFolder
from amcsearch.runtime import Compared
from amcsearch.training import check_archive, load_checkpoint, load_tensors

__all__ = ["Source", "check_finished", "smaller_network", "with_stored_weights"]

Source = Literal["auto", "factory", "program"]


def smaller_network(run: RunFolder, model: nn.Module | None, source: Source) -> nn.Module:
    """Return the pruned and fine-tuned network of a finished run, in eval mode on the CPU.

    Args:
        run: of ``search``, ``prune`` or ``sparsify``.
        model: the dense network with any weights, of any floating-point type; it is copied. None takes what ``source``
            says.
        source: ``factory`` makes the dense network as the run's configuration says, ``program`` reads ``pruned.pt2``,
            ``auto`` takes the factory where it can be imported and the program elsewhere.

    Raises:
        BadInputError: a run that is not finished, files that are missing, a model of other shapes, or a network that
            computes something else than the run's.
    """
    check_finished(run, source)
    if model is not None:
        return _checked(run, with_stored_weights(run, copied(model).float()))
    if source == "program":
        return _checked(run, _program(run))
    has_program = source == "auto" and run.pruned_pt2.is_file()
    try:
        config = load(run.config_yaml)
        if config.model.factory is None and has_program:
            return _checked(run, _program(run))
        return _checked(run, with_stored_weights(run, made_by_factory(config)))
    except BadInputError as error:
        if not has_program:
            raise
        warnings.warn(f"{run.pruned_pt2} was loaded in place of the run's factory: {error}", stacklevel=2)
        return _checked(run, _program(run))


def _checked(run: RunFolder, network: nn.Module) -> nn.Module:
    """Return a network that gives the output that the run keeps beside its input; a run of before keeps none."""
    stored = read_example(run.example_safetensors) if run.example_safetensors.is_file() else None
    if stored is None or stored.outputs is None:
        return network
    compared = Compared(_Kept(stored.outputs), network, labels=False)
    with UserCode(f"run {run.path}: its network"), torch.no_grad():
        stored.batch.through(compared)
    problem = compared.agreement().problem
    if problem is not None:
        raise BadInputError(
            f"run {run.path}: on {run.example_safetensors.name} the network {problem}: its source or "
            f"{run.pruned_safetensors.name} has changed; restore it"
        )
    return network


class _Kept(nn.Module):
    """Gives the same outputs, whatever it is asked."""

    def __init__(self, outputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Tree, **kwargs: Tree) -> tuple[Tensor, ...]:
        """Anything → the outputs of one sample."""
        del args, kwargs
        return self.outputs


def check_finished(run: RunFolder, source: Source) -> None:
    """Check that a run has a network to load.

    Raises:
        BadInputError: it has none, or the source is unknown.
    """
    if FrontFiles.of(run).front.is_file():
        raise BadInputError(
            f"run {run.path} holds fronts and no network; open it with amcsearch.FrontResult.open, prune by a policy"
        )
    if not run.pruned_safetensors.is_file() or not run.summary_json.is_file():
        raise BadInputError(f"run {run.path} has not finished: there is no network yet; resume it first")
    if source not in get_args(Source):
        raise BadInputError(f"source = {source!r}, must be one of {', '.join(get_args(Source))}")


def with_stored_weights(run: RunFolder, dense: nn.Module) -> nn.Module:
    """Cut the dense network to the run's policy and give it the run's weights.

    Raises:
        BadInputError: the policy or the weights cannot be read, or do not fit the network.
    """
    policy = PruningPolicy.read(run.policy_json)
    if run.example_safetensors.is_file():
        fold_weights(dense, _example(run))
    kept_everything = run.masks_safetensors.is_file() and not _closes_channels(run)
    smaller = dense if kept_everything else _resized(run, dense, policy)
    load_checkpoint(smaller, run.pruned_safetensors)
    return smaller.eval()


def _resized(run: RunFolder, dense: nn.Module, policy: PruningPolicy) -> nn.Module:
    traced = trace(dense, _example(run))
    missing = sorted(set(policy) - {group.name for group in traced.network.groups})
    if missing:
        raise BadInputError(f"run {run.path}: the network has no channel groups {missing[:3]}; hand over the run's own")
    kept = {}
    for group in traced.network.groups:
        if group.name in policy:
            n_keep = policy[group.name]
            if n_keep > group.channels or n_keep % group.unit:
                raise BadInputError(
                    f"run {run.path}: n_keep of {group.name!r} is {n_keep}, must be a multiple of {group.unit} up to "
                    f"{group.channels}; hand over the network that was pruned, or restore {run.policy_json.name}"
                )
            units = traced.units[group.name][: n_keep // group.unit]
            kept[group.name] = np.sort(units.ravel())
    return remove(dense, traced, kept)


def _closes_channels(run: RunFolder) -> bool:
    """Whether the masks of a sparsify run are those of groups rather than of weights."""
    return set(load_tensors(run.masks_safetensors)) == set(PruningPolicy.read(run.policy_json))


def _example(run: RunFolder) -> Batch:
    if not run.example_safetensors.is_file():
        raise BadInputError(f"run {run.path} has no {run.example_safetensors.name}; it was made by an older version")
    return read_example(run.example_safetensors).batch


def _program(run: RunFolder) -> nn.Module:
    if not run.pruned_pt2.is_file():
        raise BadInputError(
            f"run {run.path} has no {run.pruned_pt2.name}: torch.export could not follow the network; load it from its "
            "factory, or hand over the dense model"
        )
    check_archive(run.pruned_pt2, "program")
    try:
        return torch.export.load(run.pruned_pt2).module()
    except Exception as error:  # a damaged archive makes torch's reader raise almost anything
        raise BadInputError(
            f"program {run.pruned_pt2} is damaged ({type(error).__name__}: {error}); load the run from its factory, or "
            "hand over the dense model"
        ) from error
