"""ONNX graphs of builds, changed, and what onnxruntime makes of them."""

import re
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from phi3_batch.model_files import ModelFolder
from tests.conftest import REPOSITORY

OLD_LAYOUT = REPOSITORY / "tests" / "data" / "phi3-tiny-int4-0.3.0"
ATTENTION = "GroupQueryAttention"


def nodes(graph: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if node.op_type == operator]


def with_attribute(
    operator: str, name: str, value: object, which: slice = slice(None)
) -> Callable[[onnx.ModelProto], None]:
    """An edit: sets an attribute of such nodes, or takes it away if the value is None."""

    def edit(graph: onnx.ModelProto) -> None:
        for node in nodes(graph, operator)[which]:
            for attribute in [found for found in node.attribute if found.name == name]:
                node.attribute.remove(attribute)
            if value is not None:
                node.attribute.append(helper.make_attribute(name, value))

    return edit


def with_input(place: int, value: np.ndarray) -> Callable[[onnx.ModelProto], None]:
    """An edit: gives attention an optional input, always the same."""

    def edit(graph: onnx.ModelProto) -> None:
        graph.graph.initializer.append(numpy_helper.from_array(value, "given"))
        for node in nodes(graph, ATTENTION):
            node.input.extend([""] * (place + 1 - len(node.input)))
            node.input[place] = "given"

    return edit


def renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    """An edit: gives an input or output of the model another name."""

    def edit(graph: onnx.ModelProto) -> None:
        for entry in [*graph.graph.input, *graph.graph.output]:
            entry.name = new if entry.name == old else entry.name
        for node in graph.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return edit


def of_kind(operator: str) -> Callable[[onnx.ModelProto], None]:
    """An edit: puts another operator in the place of attention."""

    def edit(graph: onnx.ModelProto) -> None:
        for node in nodes(graph, ATTENTION):
            node.op_type = operator

    return edit


def without_attention(graph: onnx.ModelProto) -> None:
    """An edit, where keys and values are computed apart from queries: leaves queries alone."""
    for node in nodes(graph, ATTENTION):
        plain = helper.make_node("Identity", node.input[:1], node.output[:1], node.name)
        node.CopyFrom(plain)
    kept = [output for output in graph.graph.output if output.name == "logits"]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)


def with_one_more_input(graph: onnx.ModelProto) -> None:
    """An edit: logits depend on what no engine gives."""
    renamed("logits", "scores")(graph)
    graph.graph.node.append(helper.make_node("Add", ["scores", "bonus"], ["logits"]))
    graph.graph.input.append(helper.make_tensor_value_info("bonus", onnx.TensorProto.FLOAT, [1]))
    for output in graph.graph.output:
        output.name = "logits" if output.name == "scores" else output.name


def numbers_in_config(folder: ModelFolder, **numbers: int) -> ModelFolder:
    """Another context length or number of layers in the folder's genai_config.json."""
    file = folder.path / "genai_config.json"
    text = file.read_text(encoding="utf-8")
    for name, number in numbers.items():
        text = re.sub(rf'"{name}": \d+', f'"{name}": {number}', text)
    file.write_text(text, encoding="utf-8")
    return ModelFolder.open(folder.path)


# By accuracy level 4 onnxruntime rounds activations, and each engine in its own way.
exactly = with_attribute("MatMulNBits", "accuracy_level", 1)


def logits_by_onnxruntime(folder: ModelFolder, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder.path / "model.onnx")
    sizes = folder.dimensions
    past = np.zeros((len(ids), sizes.key_value_heads, 0, sizes.head_size), np.float32)
    feeds = {entry.name: past for entry in session.get_inputs() if entry.name.startswith("past")}
    feeds |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return session.run(["logits"], feeds)[0]


def random_ids(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 1000, (rows, length))
