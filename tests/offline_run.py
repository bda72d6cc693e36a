"""A run of the tiny job whose latency a table of made-up measurements predicts, for tests that measure it later."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.config.table_folder import write_latency_table
from amcsearch.jobs.workload import load_workload
from tests.conftest import CONFIG, TINY_JOB
from tests.jobs.test_device import GOOD, table_of


@contextmanager
def offline_run(folder: Path, verb: str, settings: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Run a verb in ``folder``, whose cache is the only one meanwhile; give the run folder and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMCSEARCH_CACHE", str(folder / "cache"))
        config, printed = folder / "tiny.yaml", folder / "printed.txt"
        config.write_text(CONFIG.replace("FACTORY", f"{TINY_JOB}:network").replace("DATA", f"{TINY_JOB}:quadrants"))
        network = load_workload(load(config), train=False).trace.network
        write_latency_table(table_of(network, {"accuracy": GOOD}), folder / "table")
        options = [each for setting in (*settings, f"device.table={folder / 'table'}") for each in ("--set", setting)]
        with printed.open("w") as stream, redirect_stdout(stream):
            assert main([verb, str(config), "-o", str(folder / "run"), *options]) == 0
        yield folder / "run", printed.read_text()
