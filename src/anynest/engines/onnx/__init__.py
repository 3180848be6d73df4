"""ONNX Runtime: one graph a stage."""
