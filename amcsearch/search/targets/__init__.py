"""Policies that meet a cost, or keep the accuracy."""
