"""Sweeps: every cell of an experiment trained to its result, through interruptions."""
