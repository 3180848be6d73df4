"""Per-task gradients: storage, one backward pass per loss."""
