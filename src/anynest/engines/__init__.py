"""A network ready to run, stage after stage: ONNX Runtime and PyTorch behind one protocol."""
