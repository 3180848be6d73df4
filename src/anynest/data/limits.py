"""Bounds that the command line, a run's config and the functions of this package share."""

MIN_SIDE, MAX_SIDE = 2, 4096  # pixels that images are resized to
MAX_WORKERS = 256  # processes that decode images
