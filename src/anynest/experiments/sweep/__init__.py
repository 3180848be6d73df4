"""Sweeps: training all cells of an experiment, in worker processes or with Ray."""
