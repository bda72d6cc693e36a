"""Tracing: from a module and an example to shapes and channel groups, each group checked by experiment."""
