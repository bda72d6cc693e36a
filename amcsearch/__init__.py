"""Hardware-aware search of pruning policies: trace, search, prune, fine-tune, export, verify."""

__version__ = "0.1.0"
