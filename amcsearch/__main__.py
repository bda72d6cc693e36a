"""Run the command line with ``python -m amcsearch``."""

from amcsearch.cli import main

raise SystemExit(main())
