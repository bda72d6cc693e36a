"""A Dask cluster of this machine for tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path

SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    # five idle processes take a tenth of a core otherwise, which other tests need
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}


class Cluster:
    """A scheduler and two workers, processes of their own that know neither the tests' folders nor their modules."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self.said(scheduler, "Scheduler at:").split()[-1]
        options = ["--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
        for _ in range(2):
            self.start("worker", self.address, *options)

    def start(self, *command: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **SETTINGS}
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    @staticmethod
    def said(process: subprocess.Popen[str], words: str) -> str:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if words in line:
                return line
        raise AssertionError("".join(lines))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stderr.close()
