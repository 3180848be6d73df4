"""The Open Inference Protocol, version 2: tensors, requests and responses as bytes."""
