"""A plan that came over the network, checked before anything of it is used.

An archive holds plan.json and models by fixed names, in memory; nothing is written by a name of the other end. Every
field is of its type and within a bound, models keep no data in other files, and the whole takes a day at most.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from typing import Any, Mapping

from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.plan import HELPERS, KIT_VERSION, PLAN_FILE, DevicePlan
from amcsearch.runtime.on_device.protobuf import external_data
from amcsearch.runtime.on_device.weights import DATA_TYPES, ITEM_BYTES

__all__ = ["MOST_ARCHIVE_BYTES", "MOST_THREADS", "checked_plan"]

MOST_ARCHIVE_BYTES = 64 * 2**20
MOST_UNPACKED_BYTES = 256 * 2**20
MOST_PLAN_BYTES = 8 * 2**20  # the header of a result holds it, in one record
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MOST_MODELS = 4096
MOST_WEIGHT_BYTES = 2 * 2**30  # of one model
MOST_WEIGHTS = 2**14  # of one model
MOST_INPUT_ITEMS = 2**26
MOST_AXES = 8
MOST_TEXT = 200
MOST_HIGH = 2**31
MOST_SECONDS = 86_400.0
MOST_THREADS = 1024
BOUNDS = {"batch": 2**16, "passes": 1000, "rounds": 10**5, "profile_rounds": 10**4, "seed": 2**63}
LEAST = {"seed": 0}
MOST_SAMPLE_MS = 1000.0
INPUT_TYPES = ("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8")
MODEL_NAME = re.compile(r"models/(?:[0-9]{4,6}\.onnx|" + "|".join(HELPERS) + ")")


def _refused(reason: str) -> DeviceError:
    return DeviceError(f"the plan is refused: {reason}"[:400])


def _number(value: Any, name: str, least: float, most: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise _refused(f"{name} is {value!r:.60}, must be a number from {least:g} to {most:g}")


def _whole(value: Any, name: str, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _refused(f"{name} is {value!r:.60}, must be a whole number from {least} to {most}")


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MOST_TEXT or not value.isprintable():
        raise _refused(f"{name} is {value!r:.60}, must be a text of at most {MOST_TEXT} printable characters")


def _items(value: Any, kind: type, name: str, most: int) -> None:
    is_kind = isinstance(value, kind)
    if not is_kind or len(value) > most:
        content = f"{len(value)} items" if is_kind else type(value).__name__
        raise _refused(f"{name} is {content}, must be a {kind.__name__} of at most {most} items")


def _dims(value: Any, name: str, least: int) -> int:
    """How many numbers a shape holds."""
    _items(value, list, name, MOST_AXES)
    for dim in value:
        _whole(dim, name, least, MOST_HIGH)
    return math.prod(value)


def _check_input(spec: Any, network: str) -> None:
    name = f"an input of network {network!r:.60}"
    _items(spec, dict, name, 3)
    items = _dims(spec.get("shape"), f"the shape of {name}", 1)
    if items > MOST_INPUT_ITEMS:
        raise _refused(f"{name} holds {items} numbers, at most {MOST_INPUT_ITEMS} are possible")
    if spec.get("dtype") not in INPUT_TYPES:
        raise _refused(f"{name} is of type {spec.get('dtype')!r:.60}, must be one of {', '.join(INPUT_TYPES)}")
    if spec.get("high") is not None:
        _whole(spec["high"], f"high of {name}", 1, MOST_HIGH)


def _check_weights(model: Mapping[str, Any], name: str) -> None:
    _items(model.get("weights"), list, f"weights of {name}", MOST_WEIGHTS)
    total = 0
    for weight in model["weights"]:
        if not isinstance(weight, list) or len(weight) != 4:
            raise _refused(f"a weight of {name} is {weight!r:.60}, must be a list of name, shape, type and scale")
        _text(weight[0], f"a weight's name of {name}")
        if weight[2] not in DATA_TYPES:
            raise _refused(f"a weight of {name} is of type {weight[2]!r:.60}, must be one of {', '.join(DATA_TYPES)}")
        _number(weight[3], f"a weight's scale of {name}", 0.0, 1e6)
        total += _dims(weight[1], f"a weight's shape of {name}", 0) * ITEM_BYTES[weight[2]]
    if total > MOST_WEIGHT_BYTES:
        raise _refused(f"{name} has weights of {total} bytes, at most {MOST_WEIGHT_BYTES} are possible")


def _check_model(model: Any, plan: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    _items(model, dict, "a model", 20)
    for key in ("id", "network", "role", "file"):
        _text(model.get(key), f"{key} of a model")
    name = f"model {model['id']!r:.60}"
    for key in ("timed", "profiled"):
        if not isinstance(model.get(key), bool):
            raise _refused(f"{key} of {name} is {model.get(key)!r:.60}, must be true or false")
    if model["file"] not in files:
        raise _refused(f"{name} lies in {model['file']!r:.60}, which the archive does not hold")
    if model["network"] not in plan["inputs"]:
        raise _refused(f"{name} is of network {model['network']!r:.60}, which has no input")
    _check_weights(model, name)


def _check_setting(setting: Any) -> None:
    _items(setting, dict, "setting", 2)
    if "threads" in setting:
        _whole(setting["threads"], "threads of the setting", 1, MOST_THREADS)
    if "provider" in setting:
        _text(setting["provider"], "provider of the setting")


def _check(plan: Any, files: Mapping[str, bytes]) -> None:
    _items(plan, dict, "plan.json", 30)
    if plan.get("version") != KIT_VERSION:
        raise _refused(f"it is of version {plan.get('version')!r:.60}, this agent reads {KIT_VERSION}; take a new kit")
    for key, most in BOUNDS.items():
        _whole(plan.get(key), key, LEAST.get(key, 1), most)
    _number(plan.get("sample_ms"), "sample_ms", 1e-3, MOST_SAMPLE_MS)
    _text(plan.get("dtype"), "dtype")
    _items(plan.get("inputs"), dict, "inputs", MOST_MODELS)
    _check_setting(plan.get("setting", {}))
    for network, written in plan["inputs"].items():
        specs = written if isinstance(written, list) else [written]
        _items(specs, list, f"inputs of network {network!r:.60}", 64)
        for spec in specs:
            _check_input(spec, network)
    _items(plan.get("models"), list, "models", MOST_MODELS)
    for model in plan["models"]:
        _check_model(model, plan, files)
    ids = [model["id"] for model in plan["models"]]
    if len(set(ids)) < len(ids) or not ids:
        raise _refused(f"{len(ids)} models have {len(set(ids))} different ids, each must have its own")
    for network in {model["network"] for model in plan["models"]}:
        count = sum(m["network"] == network and m["role"] == "reference" and m["timed"] for m in plan["models"])
        if count != 1:
            raise _refused(f"network {network!r:.60} has {count} timed references, must have 1")
    seconds = plan["passes"] * plan["rounds"] * len(ids) * plan["sample_ms"] / 1e3
    if seconds > MOST_SECONDS:
        raise _refused(f"it takes {seconds:.0f} s at least, at most {MOST_SECONDS:.0f} are measured")


def _unpacked(content: bytes) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = archive.infolist()
        declared = sum(record.file_size for record in records)
        if declared > MOST_UNPACKED_BYTES or len(records) > MOST_MODELS + 10:
            raise _refused(
                f"it declares {declared} bytes in {len(records)} files, at most {MOST_UNPACKED_BYTES} are read"
            )
        packed = [record.compress_type for record in records if record.compress_type not in PACKINGS]
        if packed:  # other methods take as much memory to unpack as the archive asks for
            raise _refused(f"it is packed by method {packed[0]}, must be by {PACKINGS[0]} or {PACKINGS[1]}")
        names = [record.filename for record in records]
        strange = [name for name in names if name != PLAN_FILE and not MODEL_NAME.fullmatch(name)]
        if strange or len(set(names)) < len(names):
            raise _refused(f"it holds a file named {(strange or names)[0]!r:.60}, which no plan has, or one twice")
        size = archive.getinfo(PLAN_FILE).file_size
        if size > MOST_PLAN_BYTES:
            raise _refused(f"{PLAN_FILE} has {size} bytes, at most {MOST_PLAN_BYTES} are read")
        plan = json.loads(archive.read(PLAN_FILE))
        return plan, {name[len("models/") :]: archive.read(name) for name in names if name != PLAN_FILE}


def checked_plan(content: bytes, expected_hash: str | None = None) -> DevicePlan:
    """Read a plan's archive.

    Args:
        content: the archive.
        expected_hash: of the plan, as it was announced; any if None.

    Raises:
        DeviceError: in one line, what of it cannot be accepted.
    """
    if len(content) > MOST_ARCHIVE_BYTES:
        raise _refused(f"it has {len(content)} bytes, at most {MOST_ARCHIVE_BYTES} are read")
    try:
        plan, files = _unpacked(content)
        missing = [name for name in HELPERS if name not in files]
        if missing:
            raise _refused(f"it lacks {missing[0]}")
        _check(plan, files)
        for name, model in files.items():
            if external_data(model):
                raise _refused(f"{name} keeps data in another file")
        checked = DevicePlan(plan, files)
    except DeviceError:
        raise
    except Exception as error:  # a damaged archive makes its readers raise almost anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise _refused(f"it is damaged ({reason[:200]}), {hashlib.sha256(content).hexdigest()[:12]}") from error
    if expected_hash not in (None, checked.hash):
        raise _refused(f"its hash is {checked.hash[:12]}, {str(expected_hash)[:12]!r} was announced")
    return checked
