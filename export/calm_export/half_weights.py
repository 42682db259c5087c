"""Weights stored in float16 in a graph that computes in float32: half the file, the same speed.

ONNX Runtime folds the casts into constants when it loads the graph.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

LEAST = 1024  # values: smaller tensors stay as they are
LARGEST = float(np.finfo(np.float16).max)


def store_half(proto: ModelProto) -> ModelProto:
    """Replace, in place, large float32 weights by float16 ones that are cast back; those beyond float16's range stay."""
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < LEAST or not np.abs(values).max() < LARGEST:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_widened", to=TensorProto.FLOAT))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*casts, *nodes])
    return proto
