"""Measured energy where the machine counts it: RAPL (Linux powercap).

A counter holds the energy used since some moment, for the whole package: every process counts. So the machine is first
read idle, and a call's energy is what the counter gained beyond that:

    E_call = (gain − P_idle·t) / calls,     s = Σ(p/m) / Σ(p/m)²

s scales a model's predictions p to measurements m with the least squared relative error. RAPL counts in microjoules,
wraps around, moves in steps of about a millisecond, and is readable by root alone since the PLATYPUS attack (2020).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from amcsearch.core import BadInputError

__all__ = [
    "POWERCAP",
    "EnergyCounter",
    "MeasuredEnergy",
    "RaplCounter",
    "calibrated_scale",
    "find_counter",
    "measure_energy",
]

POWERCAP: Final = Path("/sys/class/powercap")
_COUNTED: Final = ("package", "dram")  # a package holds its cores; "psys" holds the packages
_MJ_PER_UJ: Final = 1e-3
_LEAST_SHARE: Final = 0.01  # of the energy gained: below it idling fluctuates by as much


class EnergyCounter(Protocol):
    """A cumulative energy counter of the machine."""

    @property
    def name(self) -> str:
        """What is counted."""
        ...

    def read_mj(self) -> float:
        """Energy since the counter was made, in mJ; never falls."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredEnergy:
    """Energy of one call above idling, in mJ, and the idle power, in mW, that was subtracted for ``seconds``."""

    counter: str
    call_mj: float
    idle_mw: float
    calls: int
    seconds: float


class RaplCounter:
    """Packages and their DRAM under ``root``, wrap-around followed; read it at least once a wrap (minutes).

    Raises:
        BadInputError: no such counter, or one that may not be read; says what to do.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        domains = [path.parent for path in sorted(root.glob("*-rapl:*/energy_uj"))]
        self._domains = [path for path in domains if _text(path / "name").startswith(_COUNTED)]
        if not self._domains:
            raise BadInputError(f"no RAPL energy counter under {root} (Intel and AMD machines with Linux have it)")
        self.name = "RAPL " + " + ".join(_text(path / "name") for path in self._domains)
        self._ranges = [int(_text(path / "max_energy_range_uj")) for path in self._domains]
        self._last = [int(_text(path / "energy_uj")) for path in self._domains]
        self._total_uj = 0

    def read_mj(self) -> float:
        """Energy since this object was made, in mJ.

        Raises:
            BadInputError: the counter can no longer be read.
        """
        now = [int(_text(path / "energy_uj")) for path in self._domains]
        for after, before, wrap in zip(now, self._last, self._ranges, strict=True):
            self._total_uj += after - before if after >= before else after - before + wrap
        self._last = now
        return self._total_uj * _MJ_PER_UJ


def find_counter(root: Path = POWERCAP) -> EnergyCounter:
    """Return the CPU's counter: the models run there.

    Raises:
        BadInputError: this machine has none that we may read; says why, and that predictions go on without.
    """
    try:
        return RaplCounter(root)
    except BadInputError as error:
        raise BadInputError(
            f"energy cannot be measured on this machine: {error}; predictions need no counter"
        ) from error


def measure_energy(
    call: Callable[[], object],
    counter: EnergyCounter,
    *,
    seconds: float = 5.0,
    idle_seconds: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> MeasuredEnergy:
    """Measure one call's energy above idling: rest for ``idle_seconds``, then call for ``seconds``.

    Raises:
        BadInputError: no time to measure in, or a gain that idling alone would explain; says to measure longer.
    """
    if seconds <= 0.0 or idle_seconds <= 0.0:
        raise BadInputError(f"measuring for {seconds} s after idling {idle_seconds} s: both must be above 0")
    call()  # warm
    start, before = clock(), counter.read_mj()
    sleep(idle_seconds)
    idle_mw = (counter.read_mj() - before) / (clock() - start)
    calls, start, before = 0, clock(), counter.read_mj()
    while clock() - start < seconds:
        call()
        calls += 1
    gained, spent = counter.read_mj() - before, clock() - start
    above_idle = gained - idle_mw * spent
    if above_idle <= _LEAST_SHARE * gained:
        raise BadInputError(
            f"{counter.name} gained {gained:.3g} mJ in {spent:.3g} s, no more than idling at {idle_mw:.3g} mW; "
            "measure for longer, on a quiet machine"
        )
    return MeasuredEnergy(counter.name, above_idle / calls, idle_mw, calls, spent)


def calibrated_scale(predicted_mj: Sequence[float], measured_mj: Sequence[float]) -> float:
    """Return the factor from predictions to measurements, with the least squared relative error.

    Raises:
        BadInputError: none, different numbers of them, or one that is not above zero.
    """
    predicted, measured = np.asarray(predicted_mj, dtype=np.float64), np.asarray(measured_mj, dtype=np.float64)
    if predicted.shape != measured.shape or not predicted.size:
        raise BadInputError(f"{predicted.size} predictions for {measured.size} measurements; give as many, one or more")
    if not (np.isfinite(predicted) & np.isfinite(measured) & (predicted > 0.0) & (measured > 0.0)).all():
        raise BadInputError("predicted and measured energies must be finite and above 0 mJ")
    ratio = predicted / measured
    return float(ratio.sum() / (ratio**2).sum())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise BadInputError(f"{path} may be read by root alone; as root: chmod a+r {path}") from error
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from error
