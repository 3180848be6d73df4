"""ONNX Runtime: one graph per stage.

ONNX Runtime 1.32 sends telemetry from background threads, and a forked child then hangs when it
exits. The environment variable that prevents both is set before the library is first imported.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
