"""The configuration of a training run, one section a file."""
