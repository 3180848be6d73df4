"""What a run writes: checkpoints, weights, curves, summary, progress."""
