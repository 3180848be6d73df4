"""ONNX graphs built from a network's plan."""
