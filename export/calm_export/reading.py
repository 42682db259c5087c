"""A decoder graph that only reads: long prompts attend in parts, and the last layer answers for the last position alone.

ONNX Runtime's GroupQueryAttention multiplies every position by every other and masks half of the products afterwards. A
quarter of the prompt after the other, each with the keys up to its own end, needs 5/8 of them; Attention of ONNX's own
operators does it, and computes each product faster. Written tokens come one by one and gain nothing: a graph of their
own keeps the operator whose keys and values grow in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calm_runtime.errors import ExportError

OPSET, IR_VERSION = 23, 11  # the first with Attention
PARTS = 4
LONGEST_WHOLE = 127  # positions beyond those cached that are read in one piece: parts of fewer cost more than they save
_PREFIX = "calm/reading/"
_LAST = f"{_PREFIX}last"
_ONE = f"{_PREFIX}one"
_LENGTH, _PAST, _SIZES, _LONG, _SEVERAL = (
    f"{_PREFIX}{name}" for name in ("length", "past", "sizes", "long", "several")
)
_PLAIN = {"local_window_size": -1, "softcap": 0.0, "smooth_softmax": 0}  # what Attention would have to be told
_INPUTS = 9  # query, key, value, cached key and value, two lengths, cos, sin: others change what is computed


def reading_graph(proto: ModelProto, head_dim: int) -> ModelProto:
    """Rewrite, in place, a decoder of onnxruntime-genai's builder; returns it. Inputs, outputs and values stay.

    head_dim: channels of one head. A decoder whose attention is more than causal (windows, caps, sinks) stays as it is.
    Raises ExportError for a graph without the builder's attention, or with a rotary embedding of unknown width.
    """
    graph = proto.graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    if not attention:
        raise ExportError("the decoder has no GroupQueryAttention; it cannot be written as a graph that only reads")
    if not all(map(_is_plain, attention)):
        return proto
    for name, values in _constants(head_dim, attention[0]).items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    rotary = _rotary_width(graph, attention[0].input[7]) if _attributes(attention[0]).get("do_rotary") else 0
    nodes: list[NodeProto] = list(_lengths(attention[0].input[3]))
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            nodes.append(node)
            continue
        write = _last_layer if node is attention[-1] else _layer
        nodes += write(node, head_dim, rotary)
    end = 1 + next(index for index, node in enumerate(nodes) if attention[-1].output[0] in node.output)
    shortened = _shortened(graph, nodes[:end], nodes[end:], attention[-1].output[0])
    changed = {value for node in shortened[end - 1 :] for value in node.output}
    shapes = [value for value in graph.value_info if value.name not in changed]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(shortened)
    graph.value_info.extend(shapes)
    proto.ir_version = max(proto.ir_version, IR_VERSION)
    for entry in proto.opset_import:
        if not entry.domain:
            entry.version = max(entry.version, OPSET)
    return proto


def _is_plain(node: NodeProto) -> bool:
    attributes = _attributes(node)
    return not any(node.input[_INPUTS:]) and all(attributes.get(key, value) == value for key, value in _PLAIN.items())


def _constants(head_dim: int, node: NodeProto) -> dict[str, list[int]]:
    query, keys = (_attributes(node)[name] * head_dim for name in ("num_heads", "kv_num_heads"))
    return {
        _LAST: [-1],
        _ONE: [1],
        f"{_PREFIX}parts": [PARTS],
        f"{_PREFIX}parts_but_one": [PARTS - 1],
        f"{_PREFIX}longest_whole": [LONGEST_WHOLE],
        f"{_PREFIX}widths": [query, keys, keys],
    }


def _lengths(past_key: str) -> Iterator[NodeProto]:
    """What all layers share: positions read and cached, sizes of the parts, whether to read in parts or more than one."""
    yield _node("Shape", ["inputs_embeds"], [_LENGTH], start=1, end=2)
    yield _node("Shape", [past_key], [_PAST], start=2, end=3)
    each, most, rest = (f"{_PREFIX}{name}" for name in ("each", "most", "rest"))
    yield _node("Div", [_LENGTH, f"{_PREFIX}parts"], [each])
    yield _node("Mul", [each, f"{_PREFIX}parts_but_one"], [most])
    yield _node("Sub", [_LENGTH, most], [rest])
    yield _node("Concat", [each] * (PARTS - 1) + [rest], [_SIZES], axis=0)
    # Every part copies what is cached before it, so a long cache takes back what a short prompt saves
    yield _node("Sub", [_LENGTH, _PAST], [f"{_PREFIX}beyond"])
    yield _node("Greater", [f"{_PREFIX}beyond", f"{_PREFIX}longest_whole"], [_LONG])
    yield _node("Greater", [_LENGTH, _ONE], [_SEVERAL])


def _layer(node: NodeProto, head_dim: int, rotary: int) -> list[NodeProto]:
    """Attention of one layer: in parts when the prompt is long, else as the builder wrote it."""
    inside: list[NodeProto] = []
    query, key, value = _projections(node, inside)
    query = _rotated(node, "q", query, _PAST, head_dim, rotary, inside)
    key = _rotated(node, "k", key, _PAST, head_dim, rotary, inside)
    parts = {
        name: [f"{node.name}/{name}{index}" for index in range(PARTS)] for name in ("query", "key", "value", "output")
    }
    for name, whole in (("query", query), ("key", key), ("value", value)):
        inside.append(_node("Split", [whole, _SIZES], parts[name], axis=1))
    past = list(node.input[3:5])
    for index in range(PARTS):
        present = [f"{node.name}/{name}{index}" for name in ("present_key", "present_value")]
        taken = [parts[name][index] for name in ("query", "key", "value")]
        inside.append(_attention(node, [*taken, "", *past], [parts["output"][index], *present], is_causal=1))
        past = present
    joined = f"{node.name}/joined"
    inside.append(_node("Concat", parts["output"], [joined], axis=1))
    return [_unless_short(node, _LONG, inside, [joined, *past])]


def _last_layer(node: NodeProto, head_dim: int, rotary: int) -> list[NodeProto]:
    """Attention of the last position alone; keys and values of all positions still enter the cache."""
    inside: list[NodeProto] = []
    query, key, value = _projections(node, inside)
    last, total, position = (f"{node.name}/{name}" for name in ("last_query", "total", "last_position"))
    inside.append(_node("Gather", [query, _LAST], [last], axis=1))
    inside.append(_node("Add", [_PAST, _LENGTH], [total]))
    inside.append(_node("Sub", [total, _ONE], [position]))
    query = _rotated(node, "q", last, position, head_dim, rotary, inside)
    key = _rotated(node, "k", key, _PAST, head_dim, rotary, inside)
    results = [f"{node.name}/{name}" for name in ("last_output", "present_key", "present_value")]
    inside.append(_attention(node, [query, key, value, "", *node.input[3:5]], results, is_causal=0))
    return [_unless_short(node, _SEVERAL, inside, results)]


def _unless_short(node: NodeProto, condition: str, inside: list[NodeProto], results: list[str]) -> NodeProto:
    """`inside` under a condition, else the builder's node, which takes a cache with room for what is to come."""
    whole = NodeProto()
    whole.CopyFrom(node)
    del whole.output[:]
    whole.output.extend(f"{name}/whole" for name in node.output)
    branches = {
        "then_branch": _branch(f"{node.name}/long", inside, results),
        "else_branch": _branch(f"{node.name}/short", [whole], list(whole.output)),
    }
    return _node("If", [condition], list(node.output), **branches)


def _shortened(graph: onnx.GraphProto, body: list[NodeProto], tail: list[NodeProto], attended: str) -> list[NodeProto]:
    """Let the tail, behind the last layer's attention, take the last position of whatever was computed for all of them."""
    early = {value.name for value in graph.input}
    early |= {value for node in body if node.op_type != "Constant" for value in node.output}
    early.discard(attended)
    crossing = sorted({value for node in tail for value in node.input if value in early})
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)}
    if other := [value for value in crossing if ranks.get(value) != 3]:
        raise ExportError(f"the decoder's last layer reads {', '.join(other)}, not hidden states; it cannot only read")
    for node in tail:
        for index, value in enumerate(node.input):
            if value in crossing:
                node.input[index] = f"{value}/last"
    return [*body, *(_node("Gather", [value, _LAST], [f"{value}/last"], axis=1) for value in crossing), *tail]


def _projections(node: NodeProto, nodes: list[NodeProto]) -> tuple[str, str, str]:
    """Names of query, key and value [B, S, heads * head_dim]; the builder packs them into one where it can."""
    query, key, value = node.input[:3]
    if key:
        return query, key, value
    names = (f"{node.name}/q", f"{node.name}/k", f"{node.name}/v")
    nodes.append(_node("Split", [query, f"{_PREFIX}widths"], list(names), axis=-1))
    return names


def _rotated(
    node: NodeProto, what: str, value: str, position: str, head_dim: int, rotary: int, nodes: list[NodeProto]
) -> str:
    """The name of a projection after its rotary embedding. position: of its first row. rotary: channels; 0 for none."""
    if not rotary:
        return value
    attributes = _attributes(node)
    options = {"interleaved": attributes.get("rotary_interleaved", 0)}
    if rotary != head_dim:
        heads = attributes["num_heads" if what == "q" else "kv_num_heads"]
        options |= {"rotary_embedding_dim": rotary, "num_heads": heads}
    name = f"{node.name}/{what}_rotated"
    inputs = [value, position, *node.input[7:9]]
    nodes.append(_node("RotaryEmbedding", inputs, [name], domain="com.microsoft", **options))
    return name


def _attention(node: NodeProto, inputs: list[str], outputs: list[str], *, is_causal: int) -> NodeProto:
    attributes = _attributes(node)
    heads = {"q_num_heads": attributes["num_heads"], "kv_num_heads": attributes["kv_num_heads"]}
    scale = {"scale": attributes["scale"]} if attributes.get("scale") else {}
    return _node("Attention", inputs, outputs, name=outputs[0], is_causal=is_causal, **heads, **scale)


def _rotary_width(graph: onnx.GraphProto, cos: str) -> int:
    """Channels of a head that are rotated: the table [positions, half of them] may be chosen by length (longrope)."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in _tensors(graph)}
    found = {shape[1] for name, shape in shapes.items() if name.startswith(cos) and len(shape) == 2}
    if len(found) != 1:
        raise ExportError(f"the decoder's rotary table {cos} has no known width; it cannot only read")
    return 2 * int(found.pop())


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Initializers and constants of a graph and its branches, constants by the name of their output."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
            elif attribute.type == AttributeProto.TENSOR and node.op_type == "Constant":
                yield TensorProto(dims=attribute.t.dims, name=node.output[0])


def _branch(name: str, nodes: list[NodeProto], outputs: list[str]) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    return helper.make_graph(nodes, name, [], values)


def _node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> NodeProto:
    attributes.setdefault("name", f"{outputs[0]}/{kind}")
    return helper.make_node(kind, inputs, outputs, **attributes)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
