"""Graphs in the block layout (NCHWc) of ONNX Runtime's CPU kernels; see docs/nchwc.md."""
