"""Export of a model with its preprocessing as an ONNX file.

The graph is written here, operator by operator: of the exporters that are kept, none takes these
models with the versions that this package needs (docs/weights.md).
"""

import json
import math
from collections.abc import Mapping

import numpy as np
import onnx

from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import Architecture
from convit_jax.weights.onnx_graph import IR_VERSION, OPSET, Graph, transformer

INPUT, OUTPUTS = "images", ("probabilities", "logits")


def export_onnx(
    tensors: Mapping[str, np.ndarray],
    architecture: Architecture,
    preprocessing: Preprocessing,
    class_names: tuple[str, ...] | None,
) -> bytes:
    """Export the function uint8 [B, H, W, channels] → probabilities and logits, as `.stablehlo`.

    The graph includes the weights and the resizing, cropping and normalisation; B, H and W are
    symbolic. The arithmetic is float32.

    Args:
        tensors: the released weights, by name.
        architecture: that they fit.
        preprocessing: of the model's images.
        class_names: stored as JSON in the metadata `class_names`, if they are known.

    Returns:
        The content of an .onnx file with the outputs `OUTPUTS`, float32 [B, num_classes] each.
    """
    a, graph = architecture, Graph(tensors)
    pixels = _preprocess(graph, INPUT, preprocessing)
    logits = transformer(graph, pixels, a)
    graph.nodes.append(onnx.helper.make_node("Identity", [logits], ["logits"]))
    graph.nodes.append(onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    value = onnx.helper.make_tensor_value_info
    image_shape: list[str | int | None] = ["batch", "height", "width", a.in_channels]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "classifier",
            [value(INPUT, onnx.TensorProto.UINT8, image_shape)],
            [value(name, onnx.TensorProto.FLOAT, ["batch", a.num_classes]) for name in OUTPUTS],
            list(graph.initializers.values()),
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="convit_jax",
    )
    if class_names is not None:
        onnx.helper.set_model_props(model, {"class_names": json.dumps(class_names)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _preprocess(graph: Graph, images: str, p: Preprocessing) -> str:
    """Resize, crop and normalise: uint8 [B, H, W, channels] → float32 [B, channels, height, width].

    The arithmetic is that of `device_resizing.resize_and_centre_crop` and `mixing.normalise`.
    """
    pixels = graph.add("Cast", images, to=onnx.TensorProto.FLOAT)
    pixels = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    shape = graph.add("Shape", images, start=1, end=3)
    size = graph.add("Cast", shape, to=onnx.TensorProto.FLOAT)
    smallest = graph.constant([math.floor(side / p.crop_fraction) for side in p.image_size])
    quotients = graph.add("Div", smallest, size)
    scale = graph.add("ReduceMax", quotients, graph.constant([0], np.int64), keepdims=1)
    scaled = graph.add("Add", graph.add("Mul", size, scale), graph.constant(1e-3))
    scaled = graph.add("Max", graph.add("Floor", scaled), smallest)
    margin = graph.add("Sub", scaled, graph.constant(p.image_size))
    corner = graph.add("Round", graph.add("Mul", margin, graph.constant(0.5)))
    step = graph.add("Div", size, scaled)  # of the image's pixels, from one result to the next

    def filter_along(axis: int) -> str:
        index = graph.constant(axis, np.int64)
        parts = [graph.add("Gather", vector, index, axis=0) for vector in (size, step, corner)]
        return _cubic_filter(graph, *parts, num_results=p.image_size[axis])

    rows, columns = filter_along(0), filter_along(1)
    pixels = graph.add("MatMul", rows, pixels)
    pixels = graph.add("MatMul", pixels, graph.add("Transpose", columns, perm=[1, 0]))
    pixels = graph.add("Clip", graph.add("Round", pixels), graph.constant(0), graph.constant(255))
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (p.mean, p.std))
    pixels = graph.add("Div", pixels, graph.constant(255))
    return graph.add("Div", graph.add("Sub", pixels, graph.constant(mean)), graph.constant(std))


def _cubic_filter(graph: Graph, size: str, step: str, corner: str, *, num_results: int) -> str:
    """Return the matrix [num_results, size] of an antialiased cubic filter (Keys, a = -1/2).

    Result i is centred on pixel (i + corner + 1/2) · step - 1/2, and the filter is as much wider as
    the image shrinks.

    Args:
        graph: to add to.
        size, step, corner: scalars: pixels, pixels from a result to the next, results cut off.
        num_results: the number of results.
    """
    offsets = graph.constant(np.arange(num_results)[:, None] + 0.5)
    centres = graph.add("Mul", graph.add("Add", offsets, corner), step)
    centres = graph.add("Sub", centres, graph.constant(0.5))
    indices = graph.add("Range", graph.constant(0), size, graph.constant(1))
    width = graph.add("Max", step, graph.constant(1))
    x = graph.add("Div", graph.add("Abs", graph.add("Sub", centres, indices)), width)
    near = _polynomial(graph, x, (1.5, -2.5, 0.0, 1.0))
    far = _polynomial(graph, x, (-0.5, 2.5, -4.0, 2.0))
    zero = graph.constant(0)
    weights = graph.add("Where", graph.add("Less", x, graph.constant(2)), far, zero)
    weights = graph.add("Where", graph.add("Less", x, graph.constant(1)), near, weights)
    total = graph.add("ReduceSum", weights, graph.constant([1], np.int64), keepdims=1)
    return graph.add("Div", weights, total)


def _polynomial(graph: Graph, x: str, coefficients: tuple[float, ...]) -> str:
    """Evaluate a polynomial by Horner's rule, the highest power first."""
    value = graph.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = graph.add("Add", graph.add("Mul", value, x), graph.constant(coefficient))
    return value
