"""A service as a process, which tests kill: ``python stub_server.py RUNS DATABASE [WORKERS]``."""

import sys
from pathlib import Path

from amcsearch.service.serve import serve
from amcsearch.service.settings import ServiceSettings

if __name__ == "__main__":
    serve(
        ServiceSettings(Path(sys.argv[1]), sys.argv[2]),
        "127.0.0.1",
        0,
        workers=int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
