"""Where latencies are measured: by the agent that ``device.location`` names, or nowhere, with one line that says so."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from amcsearch.cli.main import main
from amcsearch.config import Config
from amcsearch.config.loading import load
from amcsearch.core.errors import BadInputError
from amcsearch.jobs import measuring
from amcsearch.jobs.measuring import TOKEN_FILE, agent_of, device_provenance, measure_paired
from amcsearch.jobs.tables import check_setting
from amcsearch.measure.agents.server import DeviceServer
from amcsearch.measure.agents.work_list import WorkList
from amcsearch.runs import DEVICE_SERVER
from amcsearch.runtime.export import exported
from amcsearch.runtime.on_device.agent import DeviceAgent
from amcsearch.runtime.on_device.connection import Connection
from amcsearch.runtime.paired_latency import PairedLatency
from tests.jobs.test_device import GOOD, table_of

TOKEN = "0123456789abcdef0123"
WriteConfig = Callable[..., Path]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceServer]:
    """A server, named in the environment, and an agent of pi5; both in threads."""
    work, stop = WorkList(tmp_path / "work"), threading.Event()
    with DeviceServer(work, "127.0.0.1", 0, TOKEN) as server:
        (tmp_path / "token").write_text(TOKEN)
        monkeypatch.setenv(DEVICE_SERVER, server.url)
        monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
        agent = DeviceAgent(Connection(server.url, TOKEN), "pi5", tmp_path / "agent", lambda _: None, stop.wait)

        def measure() -> None:
            while not stop.wait(0.02):
                agent.step()

        threads = [threading.Thread(target=server.serve_forever, args=(0.02,)), threading.Thread(target=measure)]
        threads[0].start()
        agent.step()  # its first word
        threads[1].start()
        yield server
        stop.set()
        threads[1].join()
        server.shutdown()
        threads[0].join()
    work.close()


def located(path: Path, location: str, *settings: str) -> Config:
    return load(path, [f"device.location={location}", *settings])


def test_an_agent_measures_the_finalists_and_is_named(server: DeviceServer, write_config: WriteConfig) -> None:
    config = located(write_config(), "pi5", "device.rounds=10")
    x = torch.zeros(1, 16)
    dense, pruned = (exported(nn.Sequential(nn.Linear(16, n), nn.ReLU(), nn.Linear(n, 4)), x) for n in (512, 16))
    made = measure_paired(config, dense, [pruned, dense], x)
    assert len(made.latencies) == 2
    assert made.device.location == "pi5"
    assert made.device.label == f"pi5 ({device_provenance(config).cpu})"
    assert made.device.measured is not None
    assert all(latency.rounds >= 1 and latency.pruned_ms > 0 for latency in made.latencies)
    assert not list((server.work.folder / "jobs").iterdir())  # taken, so that the same plan is measured anew


@pytest.mark.parametrize(
    ("setting", "decides", "expected"),
    [("null", True, None), ("null", False, 0.0), ("7", True, 7.0), ("7", False, 7.0)],
)
def test_a_busy_host_is_waited_for_where_latency_decides(
    setting: str, decides: bool, expected: float | None, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float | None] = []

    def measured(*_: object, patience_s: float | None, **__: object) -> list[PairedLatency]:
        patience.append(patience_s)
        return []

    monkeypatch.setattr(measuring, "measure_many", measured)
    config = located(write_config(), "here", f"device.patience_s={setting}")
    measure_paired(config, b"", [], torch.zeros(1, 16), decides=decides)
    assert patience == [expected]


def test_an_agent_is_asked_for_the_configured_provider(server: DeviceServer, write_config: WriteConfig) -> None:
    config = located(write_config(), "pi5", "device.rounds=10", "device.provider=CUDA")
    assert device_provenance(config).provider == "CUDAExecutionProvider"
    x = torch.zeros(1, 16)
    dense = exported(nn.Linear(16, 4), x)
    with pytest.raises(BadInputError, match="provider 'CUDAExecutionProvider' is not available"):
        measure_paired(config, dense, [dense], x)


def test_a_table_of_another_device_than_the_agents_is_refused(server: DeviceServer, write_config: WriteConfig) -> None:
    from amcsearch.jobs.workload import load_workload

    path = write_config()
    network = load_workload(load(path), train=False).trace.network
    check_setting(table_of(network, {"accuracy": GOOD}), located(path, "pi5"))  # pi5 is this machine
    with pytest.raises(BadInputError, match=r"device pi5 cannot extend the table: threads"):
        check_setting(table_of(network, {"accuracy": GOOD}), located(path, "pi5", "device.threads=2"))
    with pytest.raises(BadInputError, match=r"device.location = 'pi6': no agent of that name has connected"):
        check_setting(table_of(network, {"accuracy": GOOD}), located(path, "pi6"))


def test_a_location_without_a_server_or_a_token_is_one_line(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEVICE_SERVER, raising=False)
    path = write_config()
    assert agent_of(load(path)) is None
    with pytest.raises(BadInputError, match=r"AMCSEARCH_DEVICE_SERVER is not set; start `amcsearch device serve`"):
        agent_of(located(path, "pi5"))
    with pytest.raises(BadInputError, match="this machine measures nothing for it; write a kit"):
        agent_of(located(path, "offline"))
    monkeypatch.setenv(DEVICE_SERVER, "pi5:8753")
    with pytest.raises(BadInputError, match="is no address such as"):
        agent_of(located(path, "pi5"))
    monkeypatch.setenv(DEVICE_SERVER, "http://127.0.0.1:1")
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "none"))
    with pytest.raises(BadInputError, match=r"token file .* cannot be read"):
        agent_of(located(path, "pi5"))
    with pytest.raises(BadInputError, match=r"others reach 0\.0\.0\.0; give a --token-file"):
        DeviceServer(WorkList(tmp_path / "work"), "0.0.0.0", 0, None)


@pytest.mark.parametrize("location", ["offline", "pi5"])
def test_this_machines_own_table_says_nothing_of_another_device(
    location: str, write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"device.location={location}", "budget={latency_ms: 0.5x}", "device.table=auto"]
    options = [option for setting in settings for option in ("--set", setting)]
    assert main(["search", str(write_config()), "-o", str(tmp_path / "run"), *options]) == 2
    said = capsys.readouterr().err
    assert f"device.location = '{location}' is not this machine, whose own table would be measured; set device" in said
    assert not (tmp_path / "run").exists()
