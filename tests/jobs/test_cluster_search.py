"""A search on a Dask cluster with its study in PostgreSQL, from the command line."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from amcsearch.cli import main
from amcsearch.jobs.search import warn_of_idle_workers
from amcsearch.search import AGENTS

SHORT = (
    "--set",
    "search.trials=6",
    "--set",
    "search.agent=random",
    "--set",
    "search.batch=3",
    "--set",
    "search.baseline=null",
)
SHORT += (
    "--set",
    "search.baseline=null",
    "--set",
    "model.pretrain.epochs=1",
    "--set",
    "recovery.finetune=null",
    "--set",
    "search.finalists=1",
)


def trials(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds")


def test_a_search_on_a_cluster_ends_as_one_in_this_process_and_shows_no_password(
    write_config, tmp_path: Path, dask_cluster, postgresql, postgresql_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config())
    assert main(["search", config, "-o", str(tmp_path / "alone"), *SHORT]) == 0
    shared = ["--scheduler", dask_cluster.address, "--storage", postgresql_url]
    assert main(["search", config, "-o", str(tmp_path / "fleet"), *SHORT, *shared]) == 0
    pd.testing.assert_frame_equal(trials(tmp_path / "alone"), trials(tmp_path / "fleet"))
    assert (tmp_path / "alone/policy.json").read_bytes() == (tmp_path / "fleet/policy.json").read_bytes()
    assert not (tmp_path / "fleet/study.db").exists()
    secret = postgresql.password
    assert not [
        path for path in (tmp_path / "fleet").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
    ]
    out, err = capfd.readouterr()
    assert secret not in out + err


IDLE = "1 of 2 workers stay idle in the search of {}: search.batch = 1 is"


@pytest.mark.parametrize(
    ("capacity", "batch", "stops", "told"),
    [(2, 1, False, "tpe"), (2, 1, True, "tpe, random"), (2, 2, True, None), (1, 1, True, None)],
)
def test_more_workers_than_an_agent_proposes_policies_are_told(
    capacity: int, batch: int, stops: bool, told: str | None
) -> None:
    warnings: list[str] = []
    config = SimpleNamespace(search=SimpleNamespace(batch=batch))
    agents = {name: AGENTS[name]() for name in ("tpe", "random")}
    observer = SimpleNamespace(warn=warnings.append)
    warn_of_idle_workers(config, SimpleNamespace(capacity=capacity), agents, observer, stops=stops)
    assert len(warnings) == (told is not None)
    assert all(line.startswith(IDLE.format(told)) for line in warnings)
