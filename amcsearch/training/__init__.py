"""Data splits, losses, one training loop, checkpoints and the reference networks."""
