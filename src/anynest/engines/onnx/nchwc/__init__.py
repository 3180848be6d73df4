"""Graphs in the block layout of ONNX Runtime's CPU kernels."""
