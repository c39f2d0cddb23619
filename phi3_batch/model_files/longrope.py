"""Where a model changes its rotary embedding: at texts longer than it was first trained on.

Phi-3-mini-128k, Phi-3.5-mini and Phi-4-mini rotate keys by short factors in texts of up to 4,096
tokens (``original_max_position_embeddings``) and by long ones in longer texts (LongRoPE,
https://arxiv.org/abs/2402.13753). At each step a build's graph chooses one of two tables by how
long the text is by then: Shape, Gather, Greater, If.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from phi3_batch.errors import UnsupportedModelError

# Fields of the messages in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_TENSOR = 5
_TENSOR_INT64_DATA, _TENSOR_NAME, _TENSOR_RAW_DATA = 7, 8, 9

# Forms of their values: https://protobuf.dev/programming-guides/encoding/
_VARINT, _BYTES = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}


def find_switch(graph: Path) -> int | None:
    """Tokens of the longest text that has short factors, or None if all texts have the same.

    Args:
        graph: the build's ONNX file. Its bytes are read here, which spares users the onnx package.

    Raises:
        UnsupportedModelError: the graph branches by something else.
    """
    with graph.open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        nodes, numbers = _read(mapped)
    except (IndexError, ValueError) as error:
        raise UnsupportedModelError(f"{graph} is damaged: {error}") from error
    branches = [node for node in nodes if node.operator == "If"]
    if not branches:
        return None
    by_output = {name: node for node in nodes for name in node.outputs}
    compared = by_output.get(branches[0].inputs[0]) if len(branches) == 1 else None
    if compared is None or compared.operator != "Greater" or compared.inputs[1] not in numbers:
        raise UnsupportedModelError(
            f"{graph} branches by something else than how long a text is:"
            " it is no build of onnxruntime-genai's model builder for CPUs"
        )
    return numbers[compared.inputs[1]]


class _Node(NamedTuple):
    operator: str
    inputs: list[str]
    outputs: list[str]


def _read(model: memoryview) -> tuple[list[_Node], dict[str, int]]:
    """The nodes of a model's graph, those of its branches left out, and its constant numbers."""
    nodes: list[_Node] = []
    numbers: dict[str, int] = {}
    for graph in _messages(model, _MODEL_GRAPH):
        for message in _messages(graph, _GRAPH_INITIALIZER):
            if (number := _number(message)) is not None:
                numbers[_texts(message, _TENSOR_NAME)[0]] = number
        for message in _messages(graph, _GRAPH_NODE):
            node = _Node(
                _texts(message, _NODE_OPERATOR)[0],
                _texts(message, _NODE_INPUT),
                _texts(message, _NODE_OUTPUT),
            )
            nodes.append(node)
            if node.operator == "Constant":
                for attribute in _messages(message, _NODE_ATTRIBUTE):
                    for tensor in _messages(attribute, _ATTRIBUTE_TENSOR):
                        if (number := _number(tensor)) is not None:
                            numbers[node.outputs[0]] = number
    return nodes, numbers


def _number(tensor: memoryview) -> int | None:
    """The value of a tensor that is one 64-bit integer."""
    for field, value in _fields(tensor):
        if field == _TENSOR_RAW_DATA and isinstance(value, memoryview) and len(value) == 8:
            return int.from_bytes(value, "little", signed=True)
        if field == _TENSOR_INT64_DATA:
            return value if isinstance(value, int) else _varint(value, 0)[0]
    return None


def _messages(message: memoryview, field: int) -> list[memoryview]:
    return [v for number, v in _fields(message) if number == field and isinstance(v, memoryview)]


def _texts(message: memoryview, field: int) -> list[str]:
    return [str(value, "utf-8") for value in _messages(message, field)]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field's number and value: an integer, or the bytes of anything else."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        field, form = key >> 3, key & 7
        if form == _VARINT:
            value, place = _varint(message, place)
            yield field, value
            continue
        if form == _BYTES:
            size, place = _varint(message, place)
        else:
            size = _FIXED_SIZES.get(form, len(message))
        if place + size > len(message):
            raise ValueError("a field goes beyond its end")
        yield field, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The integer at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
