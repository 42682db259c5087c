"""Other ways to write the decoder's graph than `calm export` does: coarser blocks, dynamic int8, a shorter last layer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from speed_models import DYNAMIC, LlmForm

from calm_export.dynamic import dynamic_int8
from calm_export.graph import write_graph
from calm_export.llm import export_llm

LAST = "calm/last_position"


def write_form(source: Path, form: LlmForm, folder: Path) -> None:
    """Build the decoder of a Hugging Face folder in a form, as model.onnx."""
    path = folder / "model.onnx"
    with tempfile.TemporaryDirectory(prefix="calm-form-") as scratch:
        built = Path(scratch) / "model.onnx"
        precision = "fp32" if form.precision in DYNAMIC else form.precision
        export_llm(source, precision, built.parent, form.provider, form.block)  # type: ignore[arg-type]
        if form.last_token:
            proto = onnx.load(built)
            for file in built.parent.iterdir():
                file.unlink()
            write_graph(last_token_only(proto), built)
        if form.precision in DYNAMIC:
            write_graph(dynamic_int8(built, **DYNAMIC[form.precision]), path)
        else:
            write_graph(onnx.load(built), path)


def last_token_only(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Move the choice of the last position from the head to right behind the last layer's attention.

    Keys and values of the last layer are still made of all tokens; its output projection and MLP see one.
    """
    nodes = list(proto.graph.node)
    attention = max(index for index, node in enumerate(nodes) if node.op_type == "GroupQueryAttention")
    gather, unsqueeze = (next(n for n in nodes if n.name == f"/lm_head/prune/{op}") for op in ("Gather", "Unsqueeze"))
    body = [node for node in nodes[: attention + 1] if node.op_type != "Constant"]
    early = {value for node in body for value in node.output if value}
    tail = [node for node in nodes[attention + 1 :] if node not in (gather, unsqueeze)]
    crossing = sorted({value for node in tail for value in node.input if value in early})
    for node in tail:
        for index, value in enumerate(node.input):
            if value in crossing:
                node.input[index] = f"{value}/last"
            elif value == unsqueeze.output[0]:
                node.input[index] = gather.input[0]
    chosen = [helper.make_node("Gather", [v, LAST], [f"{v}/last"], f"{v}/choose_last", axis=1) for v in crossing]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), LAST))
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[: attention + 1], *chosen, *tail])
    return proto
