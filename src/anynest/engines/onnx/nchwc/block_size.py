"""The block size of ONNX Runtime's convolution kernels on this processor."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np


@functools.cache
def block_size() -> int:
    """Channels that ONNX Runtime's CPU kernels compute at once; 1 if they have no block layout.

    ONNX Runtime does not report it, so a small model is optimised, saved and inspected.
    """
    import onnx
    import onnxruntime as ort

    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])],
        "probe",
        [helper.make_tensor_value_info("x", real, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("y", real, [1, 4, 2, 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    with TemporaryDirectory(prefix="anynest-") as folder:
        saved = Path(folder) / "probe.onnx"
        options.optimized_model_filepath = str(saved)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(str(saved)).graph
    blocked = {
        n.input[1] for n in graph.node if n.domain == "com.microsoft.nchwc" and n.op_type == "Conv"
    }
    sizes = [weight.dims[0] for weight in graph.initializer if weight.name in blocked]
    return int(sizes[0]) if sizes else 1
