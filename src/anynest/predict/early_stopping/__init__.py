"""Early stopping: policies, thresholds calibrated on held-out images, and policies in files."""
