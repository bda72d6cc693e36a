"""Where a network's energy goes on a device, layer by layer: dense beside pruned and sparse, predicted and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from amcsearch.config import DEVICES, Config, choose, listed
from amcsearch.core import BadInputError, LayerSpec, NetworkSpec, PruningPolicy
from amcsearch.costs import DeviceProfile, EnergyModel, LayerEnergy, Sparsity, StorageFormat
from amcsearch.graph import remove
from amcsearch.jobs.device import given_profile, given_table
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.runtimes import runtime_of
from amcsearch.jobs.workload import CONFIGURED, InMemory, TracedNetwork, load_network
from amcsearch.measure import random_kept
from amcsearch.methods import layer_of
from amcsearch.reporting import check_charts, write_energy
from amcsearch.runs import Document, read_densities
from amcsearch.runtime import (
    arrays_of,
    calibrated_scale,
    find_counter,
    measure_energy,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EnergyReport", "LayerReport", "MeasuredCalls", "NetworkReport", "energy_report"]


@dataclass(frozen=True)
class LayerReport(Document):
    """Energy of a layer in mJ, as a whole and by what it is spent on.

    ``bytes`` that each memory moves stand beside the ``least_bytes`` that it has to; ``why`` says in words what costs.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    macs: float
    energy_mj: float
    parts_mj: Mapping[str, float]
    bytes: Mapping[str, float]
    least_bytes: Mapping[str, float]
    why: str


@dataclass(frozen=True)
class NetworkReport(Document):
    """Energy of a network in mJ, its layers that cost any, and in words which of them costs most and why."""

    energy_mj: float
    parts_mj: Mapping[str, float]
    dram_bytes: float
    dram_least_bytes: float
    costliest: str
    layers: tuple[LayerReport, ...]


@dataclass(frozen=True)
class MeasuredCalls(Document):
    """Energy of a call of each network above idling, by a counter; ``scale`` is measured over predicted energy."""

    counter: str
    call_mj: Mapping[str, float]
    idle_mw: Mapping[str, float]
    scale: float


@dataclass(frozen=True)
class EnergyReport(Document):
    """Where the energy goes: ``networks`` are ``dense`` and, where asked for, ``pruned`` and ``sparse``.

    ``densities`` are shares of weights by layer, in the ``storage`` format. ``without_static`` says that static power
    is left out for want of a latency table. ``files`` are the paths written, by what they are; none without a folder.
    """

    device: str
    batch: int
    networks: Mapping[str, NetworkReport]
    densities: Mapping[str, float]
    storage: str | None
    without_static: bool
    files: Mapping[str, str]
    measured: MeasuredCalls | None = None

    @property
    def layers(self) -> "pd.DataFrame":
        """One row a network and layer: ``network``, the layer's name, kind, channels and MACs, and its energy in mJ.

        ``energy_mj`` is the whole; the columns after it are its parts, such as ``dram_weights_mj``.
        """
        import pandas as pd  # a third of a second that most processes need not wait

        return pd.DataFrame(
            {
                "network": name,
                "layer": layer.name,
                "kind": layer.kind,
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "macs": layer.macs,
                "energy_mj": layer.energy_mj,
                **{f"{part.replace(' ', '_').lower()}_mj": value for part, value in layer.parts_mj.items()},
            }
            for name, network in self.networks.items()
            for layer in network.layers
        )

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, without ``measured`` where nothing was."""
        values = super().to_json()
        if self.measured is None:
            del values["measured"]
        return values


_FORMATS: Final = {storage_format.value: storage_format for storage_format in StorageFormat}


def energy_report(
    config: Config,
    folder: Path | None,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    policy: PruningPolicy | None = None,
    densities: Path | None = None,
    storage: str = StorageFormat.BITMAP,
    measure: bool = False,
) -> EnergyReport:
    """Price every layer of the network, whose weights do not matter.

    Writes ``energy.csv`` and ``energy.svg`` to ``folder``, if there is one.
    ``densities`` is a table of a training-time method's run, shown as ``sparse`` with its weights in the ``storage``
    format. ``measure`` adds the energy that this machine's counter sees, and the scale from predictions to it.

    Raises:
        BadInputError: as ``load_network``, an unknown storage format, no profile, a policy or densities that do not
            fit, no counter to measure with, or a folder that cannot be written.
    """
    profile, storage_format = _profile(config, given), choose(_FORMATS, storage, "storage")
    check_charts(folder, "energy")
    observer.phase("Tracing the network")
    network = load_network(config, given)
    spec = network.trace.network
    model = _model(config, given, profile, spec)
    policies = {"dense": spec.dense} | ({} if policy is None else {"pruned": policy})
    shares = {} if densities is None else _densities(densities, spec)
    layers: dict[str, Sequence[LayerSpec]] = {name: spec.with_channels(p).layers for name, p in policies.items()}
    estimates = {name: [model.estimate(layer) for layer in chosen] for name, chosen in layers.items()}
    if densities is not None:
        layers["sparse"] = spec.layers
        estimates["sparse"] = [
            model.estimate(layer, Sparsity(shares.get(layer.name, 1.0), weight_format=storage_format))
            for layer in spec.layers
        ]
    files = {} if folder is None else write_energy(estimates, profile.name, folder)
    if measure:
        observer.phase("Measuring energy on this machine")
    return EnergyReport(
        device=profile.name,
        batch=config.device.batch,
        networks={name: _network(layers[name], energies, model) for name, energies in estimates.items()},
        densities=shares,
        storage=None if densities is None else storage_format.value,
        without_static=profile.static_power_mw > 0.0 and model.latency is None,
        files=files,
        measured=_measured(config, network, policies, estimates) if measure else None,
    )


def _profile(config: Config, given: InMemory) -> DeviceProfile:
    profile = given_profile(config, given)
    if profile is None:
        names = ", ".join(listed(DEVICES))
        raise BadInputError(
            f"device.profile is null; set it, hand a profile over, or give --device a file or one of {names}"
        )
    return profile


def _model(config: Config, given: InMemory, profile: DeviceProfile, spec: NetworkSpec) -> EnergyModel:
    """The energy model, with a latency table where static power needs one."""
    table = given_table(config, given) if profile.static_power_mw > 0.0 else None
    return EnergyModel(profile, config.device.batch, None if table is None else table.bind(spec))


def _densities(path: Path, spec: NetworkSpec) -> dict[str, float]:
    """Share of its weights that each layer keeps, from a run's ``densities.csv``."""
    rows = read_densities(path)
    unknown = sorted(name for name in rows["name"] if layer_of(name) not in spec.layer_index)
    if unknown:
        raise BadInputError(
            f"densities {path} name {unknown[:3]}, not weights of this network; give those of a sparsify run of this "
            "configuration with granularity weights (one of channels leaves a policy.json)"
        )
    columns = (rows[name].tolist() for name in ("name", "kept", "total"))
    return {layer_of(name): max(kept, 1) / total for name, kept, total in zip(*columns, strict=True)}


def _network(layers: Sequence[LayerSpec], energies: Sequence[LayerEnergy], model: EnergyModel) -> NetworkReport:
    """Sums, the layers, and which of them costs most and why."""
    costly = max(energies, key=lambda energy: energy.total_mj)
    parts = {part: sum(energy.parts_mj[part] for energy in energies) for part in energies[0].parts_mj}
    parts["static"] += model.static.shared_mj(layers)
    total = sum(parts.values())
    share = 100 * costly.total_mj / total if total else 0.0
    return NetworkReport(
        energy_mj=total,
        parts_mj=parts,
        dram_bytes=sum(energy.dram.total_bytes for energy in energies),
        dram_least_bytes=sum(energy.dram.least_bytes for energy in energies),
        costliest=f"{costly.name} costs most, {share:.0f} % of all: {costly.why()}",
        layers=tuple(_layer(layer, energy) for layer, energy in zip(layers, energies, strict=True) if energy.total_mj),
    )


def _layer(layer: LayerSpec, energy: LayerEnergy) -> LayerReport:
    return LayerReport(
        name=layer.name,
        kind=layer.kind.value,
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        macs=energy.macs,
        energy_mj=energy.total_mj,
        parts_mj=energy.parts_mj,
        bytes={memory.memory: memory.total_bytes for memory in energy.traffic},
        least_bytes={memory.memory: memory.least_bytes for memory in energy.traffic},
        why=energy.why(),
    )


def _measured(
    config: Config,
    network: TracedNetwork,
    policies: dict[str, PruningPolicy],
    estimates: Mapping[str, Sequence[LayerEnergy]],
) -> MeasuredCalls:
    """Energy of a call of each network above idling; which channels stay does not matter, only how many."""
    counter, runtime = find_counter(), runtime_of(config)
    rng = np.random.default_rng(config.seed)
    calls = {}
    for name, policy in policies.items():
        smaller = remove(network.model, network.trace, random_kept(network.trace, policy, rng))
        loaded = runtime.load(runtime.exported(smaller, network.example))
        calls[name] = measure_energy(loaded.bound_call(arrays_of(network.example)), counter)
    predicted_mj = [sum(energy.total_mj - energy.static_mj for energy in estimates[name]) for name in calls]
    return MeasuredCalls(
        counter=counter.name,
        call_mj={name: energy.call_mj for name, energy in calls.items()},
        idle_mw={name: energy.idle_mw for name, energy in calls.items()},
        scale=calibrated_scale(predicted_mj, [e.call_mj for e in calls.values()]),
    )
