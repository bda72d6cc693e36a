"""Prune while training, by gates or mask schedules."""
