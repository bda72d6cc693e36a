"""Exact dynamic programming over channel groups."""
