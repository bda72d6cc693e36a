"""The task of a job: what is configured or handed over, and whether the network and its data fit it.

Without a task the targets are class ids, and one output is judged by cross-entropy and accuracy. That is never guessed
where it could be wrong: targets of other kinds, one logit, and several outputs that could all be meant are refused
before any work, with the lines to write.
"""

from typing import Final

import torch
from torch import Tensor, nn

from amcsearch.config import RESERVED, Config, check_contract, make
from amcsearch.core import ACCURACY, COST_NAMES, BadInputError, UserCode
from amcsearch.graph import Batch, PerSample, Tree, first_tensor, map_tensors, tensors_of_tree
from amcsearch.training import (
    CLASS_IDS,
    TASKS,
    Binary,
    Classification,
    DataSplits,
    Embedding,
    LanguageModelling,
    Multilabel,
    Regression,
    Segmentation,
    Task,
    check_samples,
    judged_tensor,
    read,
)

__all__ = [
    "BUILT_IN",
    "check_clear",
    "check_logits",
    "check_objectives",
    "check_task",
    "first_output",
    "make_task",
    "output_of",
    "training_task",
]

BUILT_IN: Final = (Binary, Classification, Embedding, LanguageModelling, Multilabel, Regression, Segmentation)
"""Tasks whose targets are tensors and whose metrics go the way they say; any other may get a list of targets."""
WORSE: Final = 2.0  # times the loss, where it is surely worse

CURE: Final = "name one: task: {name: NAME} in the configuration, task='NAME' in Python, of `amcsearch list tasks`"
_ONE_NUMBER: Final = "for one number a sample, write task: {name: regression}, or {name: binary} for the logit of yes"
_NO_AXIS: Final = "keep the axis of the samples, as .squeeze(-1) does and .squeeze() does not"


def make_task(config: Config, given: Task | None) -> Task:
    """Return the task that is handed over or configured; class ids, or vectors of ``data.targets: dense``, without one.

    Raises:
        BadInputError: as ``config.make``, a metric whose name is taken, or targets of the dense network for a task that
            cannot be judged by them.
    """
    if given is not None:
        check_contract(given, Task, "task")
        task = given
    elif config.task is not None:
        task = make(TASKS, config.task.name, config.task.params, ("task.name", "task.params"), Task)
    else:
        return CLASS_IDS if config.data.targets == "given" else Embedding()
    name = task.metric.name
    if name != ACCURACY.name and (name in RESERVED or name in config.device.costs):
        raise BadInputError(f"the task's metric is called {name!r}, which names something else; choose another name")
    if config.data.targets == "dense" and not task.is_reference:
        raise BadInputError(
            f"data.targets = 'dense' and the task {type(task).__name__}: its targets cannot be a network's outputs; "
            "choose task: {name: embedding} or {name: regression}, or leave data.targets out"
        )
    return task


def check_objectives(config: Config, task: Task) -> None:
    """Refuse objectives that are neither a cost nor the task's metric.

    Raises:
        BadInputError: the first of them.
    """
    known = tuple(dict.fromkeys(("metric", task.metric.name, *COST_NAMES, *config.device.costs)))
    for name in config.search.objectives or ():
        if name not in known:
            *most, last = map(repr, known)
            raise BadInputError(
                f"search.objectives has {name!r}, and the task judges by {task.metric.name}; expected "
                f"{', '.join(most)} or {last}"
            )


def training_task(config: Config, task: Task) -> Task:
    """Return the task of ``model.pretrain``, which reads the data set's own targets."""
    return CLASS_IDS if config.data.targets == "dense" and config.task is None and type(task) is Embedding else task


def check_task(config: Config, given: Task | None, task: Task, output: Tree, targets: Tree) -> None:
    """Refuse outputs and targets, of some samples, that the task cannot judge.

    Raises:
        BadInputError: as ``Task.check``, or label smoothing where there are no labels; names the task.
    """
    try:
        task.check(output, targets)
        if type(task) not in BUILT_IN:
            _check_direction(task, output, targets)
        for section in (config.recovery.finetune, config.sparsify.training):
            if section is not None and section.label_smoothing:
                task.training_loss(output, targets, section.label_smoothing)
    except BadInputError as error:
        name = type(given).__name__ if given is not None else "null" if config.task is None else config.task.name
        raise BadInputError(f"task = {name}: {error}") from error


def _check_direction(task: Task, output: Tree, targets: Tree) -> None:
    """Refuse a metric that gets better where each sample has the targets of another one, which the loss finds worse.

    Raises:
        BadInputError: ``higher_is_better`` is the wrong way round.
    """
    others: Tree = None
    if isinstance(targets, Tensor) and targets.ndim:
        others = targets.roll(len(targets) // 2, 0)
    elif isinstance(targets, PerSample):
        half = len(targets) // 2
        others = PerSample([*targets[half:], *targets[:half]])
    if others is None:
        return
    (loss, value), (worse, other) = (_judged(task, output, each) for each in (targets, others))
    if 0.0 < WORSE * loss < worse and task.metric.gain(other, value) > 0.0:
        way = "lower" if task.metric.higher_is_better else "higher"
        raise BadInputError(
            f"metric {task.metric.name} goes from {value:.4g} to {other:.4g} where samples have the targets of others, "
            f"and the loss from {loss:.4g} to {worse:.4g}, so {way} is better, not the other way round; write params: "
            f"{{higher_is_better: {str(not task.metric.higher_is_better).lower()}}}, or change it in the task's Metric"
        )


def _judged(task: Task, output: Tree, targets: Tree) -> tuple[float, float]:
    """Return the loss and the metric of some samples."""
    meter = task.meter()
    meter.update(map_tensors(output, Tensor.clone), map_tensors(targets, Tensor.clone))
    return float(task.loss(map_tensors(output, Tensor.clone), map_tensors(targets, Tensor.clone))), meter.value()


def check_clear(output: Tree, targets: Tree) -> None:
    """Refuse outputs that class ids, taken where no task is named, would be a guess for.

    Raises:
        BadInputError: several outputs that fit the targets, one number a sample, or targets that are no tensor; says
            the lines to write.
    """
    if not isinstance(targets, Tensor):
        raise BadInputError(f"the targets are a {type(targets).__name__}, and no task says what they are for; {CURE}")
    tensors = {path: tensor for path, tensor in tensors_of_tree(output) if tensor.is_floating_point()}
    fitting = [path for path, tensor in tensors.items() if targets.shape in (tensor.shape, tensor.shape[:-1])]
    if len(fitting) > 1 and "logits" not in fitting:
        raise BadInputError(
            f"the model returns {', '.join(map(repr, fitting))}, which all fit the targets, and no task says which one "
            f"is judged; write task: {{name: classification, params: {{output: {fitting[0]!r}}}}}, or your own"
        )
    if fitting and tensors[fitting[0]].shape[-1] == 1:
        raise BadInputError(
            "the model gives one number a sample, and no task says what it means; write task: {name: regression} for a "
            "number to predict, or task: {name: binary} for the logit of yes (in Python task='regression')"
        )


def _is_for(logits: Tensor, targets: Tensor) -> bool:
    """Whether logits (N, …, C) or (N, C, …) fit class ids (N, …)."""
    shape = tuple(logits.shape)
    return logits.ndim > targets.ndim and tuple(targets.shape) in (shape[:-1], (*shape[:1], *shape[2:]))


def first_output(config: Config, model: nn.Module, splits: DataSplits, *, are_class_ids: bool) -> tuple[Batch, Tree]:
    """Return one sample, checked, and what the network gives for it."""
    sample, shape = read(splits.calibration, [0], "calibration"), config.model.input_shape
    check_samples(
        sample.inputs,
        sample.targets,
        name="calibration",
        input_shape=shape,
        num_classes=None,
        are_class_ids=are_class_ids,
    )
    try:
        output = output_of(config, model, sample)
    except BadInputError as error:
        whole = [tensor.dtype for tensor in sample.inputs.values() if not tensor.is_floating_point()]
        if not whole or not _takes(config, model, sample.map(Tensor.float)):
            cure = "if these are not its inputs, name those by data.inputs and data.target"
            raise BadInputError(f"{error}; {cure}") from error
        raise BadInputError(
            f"data: the calibration split gives inputs of {whole[0]}, {type(model).__name__} takes torch.float32; "
            "convert and scale them in the data, such as x.float() / 255"
        ) from error
    return sample, output


def check_logits(config: Config, model: nn.Module, task: Task, output: Tree, targets: Tree) -> None:
    """Check that what a network gives for one sample, and is judged, are logits of class ids: (1, C) or (1, T, V).

    Raises:
        BadInputError: they have no axis of samples or none of classes, or another output alone fits the targets.
    """
    logits = judged_tensor(output, task.output)
    tensors = {path: tensor for path, tensor in tensors_of_tree(output) if tensor.is_floating_point()}
    fitting = [path for path, tensor in tensors.items() if isinstance(targets, Tensor) and _is_for(tensor, targets)]
    if task.output is None and len(fitting) == 1 and tensors[fitting[0]] is not logits:
        raise BadInputError(
            f"the model returns {', '.join(map(repr, tensors))}, of which the first is judged without a task that says "
            f"otherwise, and {fitting[0]!r} alone fits the targets; write task: {{name: classification, params: "
            f"{{output: {fitting[0]!r}}}}}"
        )
    if logits.ndim < 2 or len(logits) != 1:
        raise BadInputError(
            f"{_key(config)}: {type(model).__name__} gives an output of shape {tuple(logits.shape)} for one sample, "
            f"expected (1, C), or (1, T, V) for a sequence; {_ONE_NUMBER if logits.shape == (1,) else _NO_AXIS}"
        )


def output_of(config: Config, model: nn.Module, batch: Batch) -> Tree:
    """Return what a network gives for some samples.

    Raises:
        BadInputError: it cannot take them, or gives no floating-point tensor.
    """
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in batch.inputs.values())
    with UserCode(f"{_key(config)}: {type(model).__name__}, given inputs {shapes},"), torch.inference_mode():
        output = batch.through(model)
        if not any(tensor.is_floating_point() for _, tensor in tensors_of_tree(output)):
            first_tensor(output)  # which says that there is none
        return output


def _key(config: Config) -> str:
    return "model" if config.model.factory is None else "model.factory"


def _takes(config: Config, model: nn.Module, batch: Batch) -> bool:
    try:
        output_of(config, model, batch)
    except BadInputError:
        return False
    return True
