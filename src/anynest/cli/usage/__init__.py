"""The flags of each command, one command a file. Nothing here imports torch, NumPy or rich."""
