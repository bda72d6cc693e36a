"""Sections of the configuration that say what there is: trainings, the network, the data, the task, the device."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from amcsearch.config.values import ChannelMultiple, FreeAxes, ImportSpec, with_models

__all__ = [
    "AUTO",
    "CostConfig",
    "Count",
    "CountFrom0",
    "DataConfig",
    "DeviceConfig",
    "Distillation",
    "ExportConfig",
    "FinetuneConfig",
    "Magnitude",
    "ModelConfig",
    "RecipeConfig",
    "Section",
    "SplitsConfig",
    "TaskConfig",
]

AUTO: Final = "auto"
"""What ``device.table`` calls this machine's own table."""
MAX_COUNT: Final = 10_000_000
"""Of samples, epochs, evaluations: more than any machine does in a year, few enough to hold one number for each."""
MAX_MAGNITUDE: Final = 1e6
"""Of learning rates, weights of penalties and temperatures: float32 computes with it and with its square."""
MAX_THREADS: Final = 1024
MAX_BATCH: Final = 65_536
MAX_SHIFT: Final = 1024  # pixels
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
CountFrom0 = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Magnitude = Annotated[float, Field(gt=0.0, le=MAX_MAGNITUDE)]
MagnitudeFrom0 = Annotated[float, Field(ge=0.0, le=MAX_MAGNITUDE)]
LEAST_OPSET, MOST_OPSET = 13, 23  # int8 needs an axis for scales; ONNX Runtime knows the last
_Part = str | CountFrom0
"""A part of an item, by name or position."""


class Section(BaseModel):
    """Keys with their defaults: frozen, read without conversion; unknown keys and infinite numbers are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RecipeConfig(Section):
    """How to train."""

    epochs: CountFrom0 = 10
    """Passes over the training split."""
    learning_rate: Magnitude = 0.1
    """The highest; the warm-up ends there."""
    batch_size: Count = 64
    """Samples that go through the network at once."""
    accumulation: Count = 1
    """Batches whose gradients make one step: 4 of 16 samples learn as one of 64, with the memory of 16."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """``sgd`` has Nesterov momentum."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of ``sgd``; the first beta of ``adamw``."""
    weight_decay: MagnitudeFrom0 = 5e-4
    """On all parameters but those of ``no_decay``."""
    no_decay: tuple[Literal["vectors", "biases", "norms", "embeddings"], ...] = ("vectors",)
    """Parameters without weight decay: ``vectors`` have fewer than two axes (biases, scales of norms), ``norms`` are
    all of normalisation layers, ``embeddings`` all of embedding layers; ``[]`` decays everything."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: along half a cosine to zero, or constant."""
    warmup_epochs: MagnitudeFrom0 = 1.0
    """Epochs of the linear rise to ``learning_rate``; 0.5 is half of one."""
    warmup_steps: CountFrom0 | None = None
    """Steps of the rise, in place of ``warmup_epochs``."""
    clip_norm: Magnitude | None = None
    """Shortens the gradient of all parameters together to this length where it is longer; null leaves it."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What networks compute in while they train (autocast; weights stay float32). float16 needs CUDA."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of a moving average of the weights, such as 0.99, which takes their place at the end; null for none."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a target that all classes divide; not with a teacher."""
    max_shift: Annotated[int, Field(ge=0, le=MAX_SHIFT)] = 0
    """Images move at random by up to so many pixels."""
    augmentation: ImportSpec | None = None
    """``module:callable`` or ``path/to/file.py:callable``, which changes a ``Batch`` of the training split and returns
    it."""


class Distillation(Section):
    """Learn from the dense network: softened by ``temperature``, weighted by ``alpha`` against the true targets."""

    temperature: Magnitude = 4.0
    """Divides the logits of both networks."""
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    """Weight of the dense network's outputs; the true targets have the remainder."""


class FinetuneConfig(RecipeConfig):
    """The training after removal."""

    factory: ImportSpec | None = None
    """``module:callable`` or ``path/to/file.py:callable``: a training of your own in place of ours, which gets a
    ``TrainingRequest`` and returns the network; all other keys here but ``distillation`` are ours and then unused."""
    epochs: CountFrom0 = 5
    """Passes over the training split; 0 for none."""
    learning_rate: Magnitude = 0.02
    """The highest; ``rewound`` takes those of ``model.pretrain`` in its place."""
    schedule: Literal["cosine", "constant", "rewound"] = "cosine"  # type: ignore[assignment]
    """``rewound`` replays the last ``epochs`` of ``model.pretrain``, with its recipe (learning-rate rewinding)."""
    warmup_epochs: MagnitudeFrom0 = 0.0
    """Epochs of the linear rise to ``learning_rate``; 0.5 is half of one."""
    distillation: Distillation | None = Distillation()
    keep: Literal["best", "last"] = "best"
    """``best``: the epoch that does best on the search split, the network before fine-tuning among them; ``last``."""
    batch_norm: Literal["auto", "train", "freeze"] = "auto"
    """Running statistics of batch norms: ``train`` normalises by each batch and follows it, ``freeze`` keeps them while
    weights train. auto: freeze where ``recovery.bn_recalibration`` leaves them too, or ``batch_size`` is below 16."""
    patience: Count | None = None
    """Ends the training after so many epochs in a row that gave no better network on the search split; null: never."""


class ModelConfig(Section):
    """The network: made by a factory, then loaded from a checkpoint or trained on the spot."""

    factory: ImportSpec | None
    """``module:callable`` or ``file.py:callable``: gives a module for ``kwargs``; null: handed over in Python."""
    kwargs: dict[str, JsonValue] = {}
    """Arguments of the factory."""
    checkpoint: str | None = None
    """A state dict: ``.safetensors``, or ``.pt`` read with ``weights_only``."""
    input_shape: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Shape of one input without the batch dimension; null takes it from the data."""
    pretrain: RecipeConfig | None = None
    """Train the network first; null means that the factory or the checkpoint gives a trained one."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.checkpoint is not None and self.pretrain is not None:
            raise ValueError("checkpoint and pretrain are both set; keep one of them")
        return self


class SplitsConfig(Section):
    """Samples of each split that the data factory does not give itself."""

    calibration: Count | None = None
    """For saliency, recalibration and refitting; null takes a fifth of ``train``, at most 512."""
    search: Count | None = None
    """For the metric that an agent sees; null takes a fifth of ``train``, at most 512."""
    test: Count | None = None
    """For the metric in the report; null takes a fifth of ``train``."""

    def sizes(self) -> dict[str, int]:
        """Split name → samples, without the splits left to their default."""
        return self.model_dump(exclude_none=True)


class DataConfig(Section):
    """The data: a factory that returns the datasets ``train``, ``calibration``, ``search``, ``test``, or fewer."""

    factory: ImportSpec | None
    """``module:callable`` or ``file.py:callable``: gives the datasets for ``kwargs``; null: handed over in Python."""
    kwargs: dict[str, JsonValue] = {}
    """Arguments of the factory."""
    targets: Literal["given", "dense"] = "given"
    """``dense`` keeps the dense network's outputs, by cosine or the task; labels serve ``model.pretrain`` alone."""
    inputs: _Part | tuple[_Part, ...] | dict[str, _Part] | None = None
    """Parts of an item that the network gets, by name or position (``image``, ``0.x``): one, a list, or by argument."""
    target: _Part | None = None
    """The part of an item that is the target; null goes by the same rule."""
    collate: ImportSpec | None = None
    """``module:callable`` or ``file.py:callable``: makes a batch of a list of items, as for a ``DataLoader``."""
    workers: Annotated[int, Field(ge=0, le=MAX_THREADS)] = 0
    """Processes that read batches side by side from data sets that are not in memory."""
    memory_mib: Magnitude = 1024.0
    """MiB that calibration, search and test may hold each, and dense outputs of a split; more is read at every use."""
    epoch_samples: Count | None = None
    """Samples of an epoch of an iterable train split; needed where it has no length."""
    splits: SplitsConfig = SplitsConfig()


class TaskConfig(Section):
    """How outputs are judged by targets, in training and in every evaluation."""

    name: str
    """A task."""
    params: dict[str, JsonValue] = {}
    """Its parameters, such as ``metric`` and ``output``."""


class CostConfig(Section):
    """A cost of the user's own: a class that fulfils ``costs.CostModel``, or a function that gives such an object."""

    model: ImportSpec
    params: dict[str, JsonValue] = {}


class ExportConfig(Section):
    """The ONNX file."""

    opset: Annotated[int, Field(ge=LEAST_OPSET, le=MOST_OPSET)] = 20
    """Version of the operators, also of what latency tables are measured with."""
    dynamic: FreeAxes = {}
    """Axes of any length: names among batch, sequence, height and width (axes 0 to 3), as in ``[batch]``; or any name
    with its axis in every input, ``{time: 2}``, or in some inputs, ``{time: {spectrum: 2}}``.

    Empty: the file takes ``device.batch`` samples of the data's shape. Finalists are timed as they are delivered."""


class DeviceConfig(Section):
    """The target."""

    profile: str | None = None
    """A device YAML (energy constants, channel multiple); without it energy is not priced."""
    table: str | None = AUTO
    """A folder made by ``amcsearch table measure``, or its name; null: latency is not priced.

    auto: where a limit, an objective or the reward asks for latency, this machine's table for these threads, batch and
    dtype, from the cache folder; what it lacks is measured first, and what is old is brought up to date."""
    location: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)] = "here"
    """Where latency is measured: here; offline, which ends a search with predictions and a kit for the device
    (``amcsearch verify``); or the name of a device's agent, which ``amcsearch device serve`` reaches. ``sparsify``
    times nothing here, and writes a kit for any other device."""
    costs: Annotated[dict[str, CostConfig], BeforeValidator(with_models)] = {}
    """Further costs by name, each ``file.py:Class`` or ``{model: file.py:Class, params: {…}}``."""
    channel_multiple: ChannelMultiple = "auto"
    """Kept channels are multiples of it; auto takes the table's, then the profile's, then 1, and halves it where no
    policy on it is within the budget."""
    threads: Annotated[int, Field(gt=0, le=MAX_THREADS)] = 1
    """Threads inside an operator."""
    runtime: Annotated[str, Field(min_length=1)] = "onnxruntime"
    """What runs the delivered network on the device: onnxruntime, executorch
    (``pip install 'amcsearch[executorch]'``, with XNNPACK), or a class of your own, ``file.py:Class``.
    Finalists are measured with it, and the delivered network is checked in it as a file of its own. A latency table
    belongs to one runtime; of others than onnxruntime it is measured on this machine, by whole runs alone."""
    provider: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=64)] = "CPU"
    """Execution provider of ONNX Runtime: CPU, OpenVINO (``pip install 'amcsearch[openvino]'``), CUDA, TensorRT or any
    other that the device has. Finalists and the checks of ``pruned.onnx`` use it; where ``location`` is another device,
    the checks are made on this machine's CPU. A latency table belongs to one
    provider; only the CPU's gives a profile of its kernels, of others whole runs alone speak.
    """
    batch: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 1
    """Samples in one call."""
    dtype: Literal["float32", "int8"] = "float32"
    """What the device computes in. int8: tables, finalists and ``pruned.onnx`` are quantised after training, calibrated
    on the calibration split; the search itself judges in float32."""
    export: ExportConfig = ExportConfig()
    rounds: Count = 300
    """Samples of a latency measurement of finalists and of the result; 300 take about fifteen seconds."""
    patience_s: Annotated[float, Field(ge=0, le=3600)] | None = None
    """Seconds that a measurement goes on beyond ``rounds`` while a busy host leaves it in doubt; null: three times as
    long as the rounds took where latency is limited, else 0. After that the verdict is undecided: the prediction is
    reported with its error, and how to measure later."""

    @model_validator(mode="after")
    def _runtime_is_here(self) -> "DeviceConfig":
        if self.location != "here" and self.runtime != "onnxruntime":
            raise ValueError(
                f"runtime = {self.runtime!r} is used on this machine alone, location is {self.location!r}; set "
                "location: here, or runtime: onnxruntime"
            )
        return self
