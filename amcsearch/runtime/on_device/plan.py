"""What to measure, as it travels: plan.json and one model without weights for each entry.

The plan's hash covers its canonical JSON and every model, so that results say exactly what they were measured of.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.weights import WeightSpec, weight_bytes, with_weights

__all__ = [
    "HELPERS",
    "KIT_VERSION",
    "PLAN_FILE",
    "DevicePlan",
    "Entry",
    "InputSpec",
    "canonical",
    "plan_hash",
    "read_plan",
]

KIT_VERSION = 1
PLAN_FILE = "plan.json"
HELPERS = ("empty", "probe")
MOST_BYTES = 512 * 2**20  # of a kit, unpacked; models travel without weights and have some KiB each


class InputSpec(NamedTuple):
    """An input of a network: shape with the batch; integers in [0, high) if ``high`` is given, else standard normal."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int | None = None


class Entry(NamedTuple):
    """A model of the plan; ``reference`` is the id of its network's dense model, which is timed beside it."""

    id: str
    network: str
    reference: str
    timed: bool
    profiled: bool
    file: str
    weights: tuple[WeightSpec, ...]


def canonical(plan: Mapping[str, Any]) -> bytes:
    """The plan as JSON that does not depend on the order of keys."""
    return json.dumps(plan, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def plan_hash(plan: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """SHA-256 over the canonical plan and the models, by name."""
    digest = hashlib.sha256(canonical(plan))
    for name in sorted(files):
        digest.update(f"\n{name}\n".encode() + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


class DevicePlan:
    """A plan and its models.

    Args:
        plan: the plan's JSON: version, batch, dtype, passes, rounds, sample_ms, profile_rounds, seed, inputs by
            network (one, or a list of several in order), models, info; ``setting`` where it says threads and provider.
        files: serialised models without weights by file name, ``empty`` and ``probe`` among them.
    """

    def __init__(self, plan: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        self.plan, self.files = plan, files
        self.hash = plan_hash(plan, files)
        references = {model["network"]: model["id"] for model in plan["models"] if model["role"] == "reference"}
        self.entries = tuple(_entry(model, references[model["network"]]) for model in plan["models"])
        self.by_id = {entry.id: entry for entry in self.entries}
        self.inputs = {name: _specs(written) for name, written in plan["inputs"].items()}
        self.empty, self.probe = (files[name] for name in HELPERS)

    def model(self, entry: Entry) -> bytes:
        """The entry's serialised model with weights made for it."""
        return with_weights(self.files[entry.file], entry.weights, seed=int(self.plan["seed"]))

    def model_bytes(self, entry: Entry) -> int:
        """Size of ``model`` without making it."""
        return len(self.files[entry.file]) + weight_bytes(entry.weights)

    def check_setting(self, threads: int, provider: str) -> None:
        """Refuse another setting than the plan's, where it has one.

        Raises:
            DeviceError: names both.
        """
        setting = self.plan.get("setting", {})
        for key, asked in (("threads", threads), ("provider", provider)):
            if setting.get(key, asked) != asked:
                raise DeviceError(f"{key} = {asked!r:.60} is asked for, the plan is of {key} = {setting[key]!r:.60}")

    def described(self) -> dict[str, Any]:
        """The plan as a result's header holds it: without what only the device needs."""
        models = [{k: v for k, v in model.items() if k not in ("file", "weights")} for model in self.plan["models"]]
        return {**self.plan, "models": models}


def _specs(written: Any) -> tuple[InputSpec, ...]:
    several = written if isinstance(written, list) else [written]
    return tuple(InputSpec(tuple(spec["shape"]), spec["dtype"], spec["high"]) for spec in several)


def _entry(model: Mapping[str, Any], reference: str) -> Entry:
    weights = tuple(WeightSpec(name, tuple(dims), dtype, scale) for name, dims, dtype, scale in model["weights"])
    return Entry(model["id"], model["network"], reference, model["timed"], model["profiled"], model["file"], weights)


def _checked(plan: Mapping[str, Any], files: Mapping[str, bytes], wanted: Sequence[str], path: Path) -> DevicePlan:
    if plan.get("version") != KIT_VERSION:
        raise DeviceError(f"{path} holds a plan of version {plan.get('version')}, this program reads {KIT_VERSION}")
    missing = [name for name in wanted if name not in files]
    if missing:
        raise DeviceError(f"{path} lacks {missing[0]} and {len(missing) - 1} other files; copy the kit again")
    return DevicePlan(plan, files)


def read_plan(path: Path) -> DevicePlan:
    """Read the plan that a kit holds.

    Raises:
        DeviceError: the file is no kit, or was damaged on the way.
    """
    try:
        if not path.is_file():  # a device would be read for ever
            raise ValueError("it is no file")
        with zipfile.ZipFile(str(path)) as archive:
            declared = sum(record.file_size for record in archive.infolist())
            if declared > MOST_BYTES:
                raise ValueError(f"it declares {declared} bytes, at most {MOST_BYTES} are read")
            plan = json.loads(archive.read(PLAN_FILE))
            names = [name for name in archive.namelist() if name.startswith("models/")]
            files = {name[len("models/") :]: archive.read(name) for name in names}
        return _checked(plan, files, [*HELPERS, *(model["file"] for model in plan["models"])], path)
    except DeviceError:
        raise
    except Exception as error:  # a damaged archive or plan makes its readers raise almost anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DeviceError(f"{path} is not a whole kit ({reason}); copy it again") from error
