"""The training loop, and what belongs to any training: average, checkpoints, statistics."""
