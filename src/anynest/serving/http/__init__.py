"""The Open Inference Protocol over HTTP: an ASGI application for any server."""
