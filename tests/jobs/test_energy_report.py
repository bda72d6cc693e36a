"""The energy verb on a network of seconds: sums, files, dense beside pruned, and a machine with a counter."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.runtime.energy_counters import MeasuredEnergy

ROOT = Path(__file__).parents[2]
DEVICE = ["--device", str(ROOT / "configs/devices/eyeriss_relative.yaml")]
WriteConfig = Callable[..., Path]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["energy", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text('{"stem.0": 8, "body.0": 8}')
    return path


def test_the_parts_add_up_and_pruning_saves(
    write_config: WriteConfig, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run([str(write_config()), *DEVICE, "--policy", str(policy), "-o", str(tmp_path / "out")], capsys)
    dense, pruned = found["networks"]["dense"], found["networks"]["pruned"]
    assert pruned["energy_mj"] < dense["energy_mj"]
    for network in (dense, pruned):
        assert network["energy_mj"] == pytest.approx(sum(layer["energy_mj"] for layer in network["layers"]))
        assert network["energy_mj"] == pytest.approx(sum(network["parts_mj"].values()))
        assert network["dram_bytes"] >= network["dram_least_bytes"]
        costly = max(network["layers"], key=lambda layer: layer["energy_mj"])
        assert network["costliest"].startswith(costly["name"])
        assert costly["why"] in network["costliest"]
    # 16 filters of 3x3 over one 8x8 image
    assert dense["layers"][0]["macs"] == 16 * 9 * 64
    with open(found["files"]["csv"], newline="") as stream:
        rows = list(csv.DictReader(stream))
    stem = next(row for row in rows if (row["network"], row["layer"], row["memory"]) == ("pruned", "stem.0", "DRAM"))
    assert (float(stem["macs"]), float(stem["bytes"])) == (8 * 9 * 64, 2 * (72 + 64 + 8 * 64))
    picture = Path(found["files"]["svg"]).read_text()
    assert all(text in picture for text in ("DRAM weights", "stem.0", "dense (faded) above pruned"))


def test_the_text_names_the_costliest_layer(
    write_config: WriteConfig, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(write_config()), *DEVICE, "--policy", str(policy), "-o", str(tmp_path / "out")]
    assert main(["energy", *arguments]) == 0
    text = capsys.readouterr().out
    assert "dense: body.3 costs most" in text
    assert "16→24" in text
    assert "times the lower bound" in text


def test_a_sparse_network_stands_beside_the_dense_one(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quarter of the stem's 16 filters of 3x3 weights: a bit for each of 144, and 16 bits for 36."""
    (tmp_path / "densities.csv").write_text("name,kept,total,density\nstem.0.weight,36,144,0.25\n")
    arguments = [str(write_config()), *DEVICE, "--densities", str(tmp_path / "densities.csv"), "-o", str(tmp_path)]
    found = run(arguments, capsys)
    assert (found["densities"], found["storage"]) == ({"stem.0": 0.25}, "bitmap")
    dense, sparse = (found["networks"][name]["layers"] for name in ("dense", "sparse"))
    saved = dense[0]["bytes"]["DRAM"] - sparse[0]["bytes"]["DRAM"]
    assert saved == pytest.approx(2 * 144 - (144 + 36 * 16) / 8)
    assert [layer["energy_mj"] for layer in dense[1:]] == [layer["energy_mj"] for layer in sparse[1:]]
    assert "dense (faded) above sparse" in Path(found["files"]["svg"]).read_text()
    assert main(["energy", *arguments, "--storage", "csr"]) == 0
    assert "density, csr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read densities"),
        ("name,kept\nstem.0.weight,1\n", "cannot read densities"),
        ("name,kept,total,density\nstem.0,8,16,0.5\n", "not weights of this network"),
    ],
)
def test_densities_that_do_not_fit_are_one_line(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = tmp_path / "densities.csv"
    if text is not None:
        path.write_text(text)
    assert main(["energy", str(write_config()), *DEVICE, "--densities", str(path), "-o", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_mistakes_are_one_line(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = [str(write_config()), "-o", str(tmp_path / "out"), "--set", "device.profile=null"]
    monkeypatch.chdir(ROOT)
    for arguments, words in (
        (config, "--device a file or one of edge_cpu"),
        ([*config, "--device", "toaster"], "--device: device profile toaster does not exist in "),
        ([*config, "--device", "toaster"], "; give a file or one of edge_cpu"),
        ([*config, *DEVICE, "--policy", str(tmp_path / "none.json")], "none.json"),
    ):
        assert main(["energy", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_measured_energy_stands_beside_the_prediction(
    write_config: WriteConfig,
    policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counter:
        name = "toy counter"

    energies = iter([4.0, 2.0])

    def measured(call: Callable[[], object], counter: Counter) -> MeasuredEnergy:
        call()  # the exported network runs
        return MeasuredEnergy(counter.name, next(energies), 1000.0, 1, 1.0)

    monkeypatch.setattr("amcsearch.jobs.energy.find_counter", Counter)
    monkeypatch.setattr("amcsearch.jobs.energy.measure_energy", measured)
    arguments = [str(write_config()), *DEVICE, "--policy", str(policy), "-o", str(tmp_path / "out"), "--measure"]
    found = run(arguments, capsys)
    assert found["measured"]["call_mj"] == {"dense": 4.0, "pruned": 2.0}
    ratios = [found["networks"][name]["energy_mj"] / mj for name, mj in found["measured"]["call_mj"].items()]
    assert found["measured"]["scale"] == pytest.approx(sum(ratios) / sum(ratio**2 for ratio in ratios))
