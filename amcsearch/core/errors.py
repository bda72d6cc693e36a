"""Errors that a user's request can cause; the command line prints each as one line with its exit code."""

__all__ = ["BadInputError", "DeliveryError", "DivergedError", "InfeasibleBudgetError"]


class BadInputError(ValueError):
    """Input that cannot be used; the message names the value, the bound and the cure (exit code 2)."""


class InfeasibleBudgetError(ValueError):
    """A budget no policy can meet; the message gives the smallest feasible value (exit code 3)."""


class DeliveryError(BadInputError):
    """A delivered file that is not the network that was judged; the run folder keeps everything (exit code 2)."""


class DivergedError(BadInputError):
    """A training that ended far from where it was to go; names epoch, loss and learning rate (exit code 2)."""
