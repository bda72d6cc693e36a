"""The main job: from a configuration to a smaller model that is measured to be faster."""

from amcsearch.pipeline.story import prune, search

__all__ = ["prune", "search"]
