"""Energy counters, read from a powercap tree made of files and a GPU made of numbers."""

from pathlib import Path

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.runtime.energy_counters import RaplCounter, calibrated_scale, find_counter, measure_energy

WRAP = 262_143_328_850


def domain(root: Path, folder: str, name: str, energy_uj: int) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{WRAP}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """A package with its cores and its DRAM, and the whole platform."""
    names = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    return {name: domain(tmp_path, folder, name, 1000) for folder, name in names.items()}


def gain(path: Path, microjoules: int) -> None:
    path.write_text(f"{(int(path.read_text()) + microjoules) % WRAP}\n")


def test_packages_and_dram_are_added_and_nothing_is_counted_twice(machine: dict[str, Path], tmp_path: Path) -> None:
    counter = RaplCounter(tmp_path)
    assert counter.name == "RAPL package-0 + dram"
    for path in machine.values():
        gain(path, 5000)
    assert counter.read_mj() == pytest.approx(10.0)
    assert counter.read_mj() == pytest.approx(10.0)


def test_wrap_around_is_followed(machine: dict[str, Path], tmp_path: Path) -> None:
    machine["package-0"].write_text(f"{WRAP - 500}\n")
    counter = RaplCounter(tmp_path)
    gain(machine["package-0"], 2000)
    assert int(machine["package-0"].read_text()) == 1500
    assert counter.read_mj() == pytest.approx(2.0)


class Machine:
    """Time that passes only when something happens; 2 W while resting, 2 W more while calling, 10 ms a call."""

    def __init__(self, energy: Path) -> None:
        self.now, self._energy, self.call_watts = 0.0, energy, 4.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._pass(seconds, 2.0)

    def call(self) -> None:
        self._pass(0.01, self.call_watts)

    def _pass(self, seconds: float, watts: float) -> None:
        self.now += seconds
        gain(self._energy, round(seconds * watts * 1e6))


def test_a_call_costs_what_it_gains_beyond_idling(machine: dict[str, Path], tmp_path: Path) -> None:
    made = Machine(machine["package-0"])
    found = measure_energy(
        made.call, RaplCounter(tmp_path), seconds=1.0, idle_seconds=0.5, clock=made.clock, sleep=made.sleep
    )
    assert found.idle_mw == pytest.approx(2000)
    assert found.calls in (100, 101)  # 0.01 s is not exact in binary
    assert found.call_mj == pytest.approx(20.0)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_gain_that_idling_explains_is_refused(machine: dict[str, Path], tmp_path: Path, seconds: float) -> None:
    made = Machine(machine["package-0"])
    made.call_watts = 2.0
    with pytest.raises(BadInputError, match=r"must be above 0|measure for longer"):
        measure_energy(made.call, RaplCounter(tmp_path), seconds=seconds, clock=made.clock, sleep=made.sleep)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"energy cannot be measured on this machine: no RAPL.*need no counter"):
        find_counter(tmp_path)


def test_a_counter_for_root_alone_says_so(
    machine: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_text = Path.read_text

    def guarded(path: Path, *args: object, **kwargs: object) -> str:
        if path == machine["dram"]:
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(BadInputError, match=r"read by root alone; as root: chmod a\+r"):
        find_counter(tmp_path)


def test_the_scale_of_exact_predictions_is_exact_and_outliers_count_by_their_share() -> None:
    assert calibrated_scale([1.0, 2.0], [3.0, 6.0]) == pytest.approx(3.0)
    # p/m = 1/2 and 1/4: s = 0.75 / 0.3125
    assert calibrated_scale([1.0, 1.0], [2.0, 4.0]) == pytest.approx(2.4)


@pytest.mark.parametrize(("predicted", "measured"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_a_scale_needs_pairs_above_zero(predicted: list[float], measured: list[float]) -> None:
    with pytest.raises(BadInputError):
        calibrated_scale(predicted, measured)
