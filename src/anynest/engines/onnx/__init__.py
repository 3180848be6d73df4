"""ONNX Runtime: one graph per stage."""
