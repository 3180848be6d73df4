"""Per-task gradients over several ranks."""
