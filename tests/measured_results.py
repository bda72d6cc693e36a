"""Results of kits: made up, with every model's latency and what the device says of itself; and really measured."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from amcsearch.core.layer import LayerKind
from amcsearch.core.network import NetworkSpec
from amcsearch.costs.compute import macs
from amcsearch.costs.latency.rows import COLUMNS, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable, fingerprint
from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.kit.kit import measure_here
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.runtime.on_device.plan import KIT_VERSION, DevicePlan, read_plan
from amcsearch.runtime.on_device.records import encoded
from amcsearch.runtime.session import detect_nchwc_block, provenance


def table_of_another_device(network: NetworkSpec, name: str = "tiny") -> LatencyTable:
    """Every layer of a network at three widths, 1 GMAC/s."""
    rows = {}
    for share in (1.0, 0.5, 0.25):
        kept = np.array([max(g.unit, int(share * g.channels) // g.unit * g.unit) for g in network.groups])
        for layer in network.with_channels(network.policy(kept)).layers:
            if layer.kind is not LayerKind.BATCH_NORM:
                values = (name, *row_key(layer), f"{layer.kind}", 1.0, 1e-3 + macs(layer) / 1e6, 0.0, 1, "profile")
                rows[row_key(layer)] = dict(zip(COLUMNS, values, strict=True))
    info = {"cpu": "another", "nchwc_block": detect_nchwc_block()}
    entry = {"constant_ms": 0.01, "fingerprint": fingerprint(network), "accuracy": {"mape": 0.5}}
    return LatencyTable.from_mapping(make_rows(rows.values()), {"provenance": info, "networks": {name: entry}})


def made_up(plan: DevicePlan, latency_ms: Mapping[str, float], **device: Any) -> list[dict[str, Any]]:
    """Records of a whole run: every sample within 0.1 % of the given latency; ``device`` changes the provenance."""
    where = {**provenance(1, int(plan.plan["batch"]), str(plan.plan["dtype"])).as_mapping(), **device}
    header = {"kind": "header", "part": 1, "kit_version": KIT_VERSION, "plan_hash": plan.hash, "provenance": where}
    records: list[dict[str, Any]] = [{**header, "plan": plan.described()}]
    for number in range(1, int(plan.plan["passes"]) + 1):
        ripple = 1.0 + 0.001 * np.sin(np.arange(int(plan.plan["rounds"])) + number)
        records.append({"kind": "overhead", "pass": number, "samples_ms": [0.001]})
        for entry in plan.entries:
            samples, reference = ((latency_ms[name] * ripple).tolist() for name in (entry.id, entry.reference))
            timing = {"kind": "timing", "model": entry.id, "pass": number, "samples_ms": samples}
            records.append({**timing, "reference": entry.reference, "reference_ms": reference})
    return [*records, {"kind": "end", "part": 1, "complete": True}]


def write_result(kit: Path, path: Path, latency_ms: Mapping[str, float], **device: Any) -> Path:
    """Write what a kit would have written on such a device."""
    path.write_bytes(b"".join(map(encoded, made_up(read_plan(kit), latency_ms, **device))))
    return path


def measure_small(name: str, width: int, path: Path) -> Path:
    """What a quick kit writes that measures one small network on this machine."""
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 16, 3, padding=1), nn.Flatten()]
    model, x = nn.Sequential(*layers, nn.Linear(1024, 4)).eval(), torch.zeros(1, 1, 8, 8)
    plan = measurement_plan([MeasuredSubject(name, model, trace(model, x), x)], variants=12, held_out=3)
    measure_here(replace(plan, passes=2, rounds=2, sample_ms=0.05, profile_rounds=1), path)
    return path
