"""Export to ONNX files, checked before they are written."""
