"""Prune to a known policy, to a cost, or as far as accuracy is kept."""
