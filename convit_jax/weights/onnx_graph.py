"""ONNX operators of a vision transformer, with the released tensors as their weights."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from convit_jax.models import Architecture
from convit_jax.models.block import LAYER_NORM_EPSILON
from convit_jax.models.gpsa import relative_positions

# LayerNormalization is an operator since 17, Gelu since 20.
OPSET, IR_VERSION = 20, 10


class Graph:
    """A graph under construction; values are referred to by name.

    Attributes:
        nodes: the operators, in the order of their computation.
        initializers: constants and weights.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        """`tensors` are the released weights by name, for `weight`."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._tensors = tensors
        self._constants: dict[tuple[Any, ...], str] = {}
        self._count: collections.Counter[str] = collections.Counter()

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output, and return the output's name."""
        self._count[operator] += 1
        output = f"{operator}_{self._count[operator]}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant; equal constants are stored once."""
        array = np.asarray(value, dtype)
        key = array.dtype.str, array.shape, array.tobytes()
        name = self._constants.setdefault(key, f"constant_{len(self._constants) + 1}")
        return self._store(name, array)

    def weight(self, name: str, *, transposed: bool = False) -> str:
        """Return the name of a released tensor, stored as it is or transposed."""
        array = self._tensors[name]
        return self._store(f"{name}.T", array.T) if transposed else self._store(name, array)

    def has(self, name: str) -> bool:
        """Whether there is a released tensor of that name."""
        return name in self._tensors

    def _store(self, name: str, array: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(np.array(array, order="C"), name)
        return name


def linear(graph: Graph, x: str, name: str) -> str:
    """Apply a linear layer: [..., inputs] → [..., outputs]."""
    product = graph.add("MatMul", x, graph.weight(f"{name}.weight", transposed=True))
    has_bias = graph.has(f"{name}.bias")
    return graph.add("Add", product, graph.weight(f"{name}.bias")) if has_bias else product


def layer_norm(graph: Graph, x: str, name: str) -> str:
    """Normalise over the channels: [..., C] → [..., C]."""
    weights = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.add("LayerNormalization", x, *weights, axis=-1, epsilon=LAYER_NORM_EPSILON)


def transformer(graph: Graph, images: str, a: Architecture) -> str:
    """Classify images: normalised float32 [B, channels, height, width] → logits [B, classes]."""
    x = graph.add("Conv", images, graph.weight("patch_embed.proj.weight"),
                  graph.weight("patch_embed.proj.bias"), strides=[a.patch_size] * 2)  # fmt: skip
    x = graph.add("Reshape", x, graph.constant([0, 0, -1], np.int64))
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    num_patches = a.grid[0] * a.grid[1]
    class_tokens_at = a.gpsa_layers if a.num_class_tokens else a.depth
    if a.class_token_position:
        x = _with_class_tokens(graph, x, a)
    if a.use_pos_embed:
        x = graph.add("Add", x, graph.weight("pos_embed"))
    for i in range(a.depth):
        if i == class_tokens_at and not a.class_token_position:
            x = _with_class_tokens(graph, x, a)
        num_tokens = num_patches + (a.num_class_tokens if i >= class_tokens_at else 0)
        x = _block(graph, x, a, i, num_tokens)
    heads = ["head", "head_dist"] if a.distillation_token else ["head"]
    logits = [_head(graph, x, token, head) for token, head in enumerate(heads)]
    return logits[0] if len(logits) == 1 else graph.add("Mean", *logits)


def _head(graph: Graph, x: str, token: int, name: str) -> str:
    chosen = graph.add("Gather", x, graph.constant(token, np.int64), axis=1)
    return linear(graph, layer_norm(graph, chosen, "norm"), name)


def _with_class_tokens(graph: Graph, x: str, a: Architecture) -> str:
    batch = graph.add("Shape", x, start=0, end=1)
    shape = graph.add("Concat", batch, graph.constant([1, a.width], np.int64), axis=0)
    names = ["cls_token", "dist_token"][: a.num_class_tokens]
    tokens = [graph.add("Expand", graph.weight(name), shape) for name in names]
    return graph.add("Concat", *tokens, x, axis=1)


def _block(graph: Graph, x: str, a: Architecture, i: int, num_tokens: int) -> str:
    """Apply block i: x + attention(norm1(x)), then x + mlp(norm2(x))."""
    name = f"blocks.{i}"
    attend = _gated_attention if i < a.gpsa_layers else _attention
    branch = attend(graph, layer_norm(graph, x, f"{name}.norm1"), f"{name}.attn", a, num_tokens)
    x = graph.add("Add", x, _scaled(graph, branch, f"{name}.ls1.gamma"))
    branch = linear(graph, layer_norm(graph, x, f"{name}.norm2"), f"{name}.mlp.fc1")
    branch = linear(graph, graph.add("Gelu", branch), f"{name}.mlp.fc2")
    return graph.add("Add", x, _scaled(graph, branch, f"{name}.ls2.gamma"))


def _scaled(graph: Graph, branch: str, name: str) -> str:
    """Apply LayerScale, if the model has it."""
    return graph.add("Mul", branch, graph.weight(name)) if graph.has(name) else branch


def _attention(graph: Graph, x: str, name: str, a: Architecture, num_tokens: int) -> str:
    """softmax(q kᵀ / √D) v (paper Eq. 1 and 2)."""
    q, k, v = _by_heads(graph, linear(graph, x, f"{name}.qkv"), 3, a, num_tokens)
    return _output(graph, graph.add("MatMul", _content(graph, q, k, a), v), name, a, num_tokens)


def _gated_attention(graph: Graph, x: str, name: str, a: Architecture, num_tokens: int) -> str:
    """((1 - σ(λ)) softmax(q kᵀ / √D) + σ(λ) softmax(v_pos · r)) v (paper Eq. 6 and 7).

    Or vanilla: softmax(q kᵀ / √D + v_pos · r) v (Eq. 4).
    """
    q, k = _by_heads(graph, linear(graph, x, f"{name}.qk"), 2, a, num_tokens)
    (v,) = _by_heads(graph, linear(graph, x, f"{name}.v"), 1, a, num_tokens)
    # The bias of v_pos · r cancels in the softmax. Nothing here depends on the images, so runtimes
    # compute the positional attention once, when they load the model.
    r = graph.constant(np.asarray(relative_positions(a.grid)))
    scores = graph.add("MatMul", r, graph.weight(f"{name}.pos_proj.weight", transposed=True))
    scores = graph.add("Transpose", scores, perm=[2, 0, 1])
    if a.positional_attention == "vanilla":
        scores = graph.add("Add", _content_scores(graph, q, k, a), scores)
        attention = graph.add("Softmax", scores, axis=-1)
        return _output(graph, graph.add("MatMul", attention, v), name, a, num_tokens)
    positional = graph.add("Softmax", scores, axis=-1)
    gate = graph.constant(0.5)
    if a.use_gating:
        gate = graph.add("Sigmoid", graph.weight(f"{name}.gating_param"))
        gate = graph.add("Reshape", gate, graph.constant([-1, 1, 1], np.int64))
    rest = graph.add("Sub", graph.constant(1.0), gate)
    content = graph.add("Mul", rest, _content(graph, q, k, a))
    mixed = graph.add("Add", content, graph.add("Mul", gate, positional))
    return _output(graph, graph.add("MatMul", mixed, v), name, a, num_tokens)


def _by_heads(
    graph: Graph, x: str, parts: int, a: Architecture, num_tokens: int
) -> tuple[str, ...]:
    """[B, N, parts · H · D] → for each part [B, H, N, D]."""
    shape = graph.constant([0, num_tokens, parts, a.num_heads, a.head_dim], np.int64)
    x = graph.add("Transpose", graph.add("Reshape", x, shape), perm=[2, 0, 3, 1, 4])
    indices = (graph.constant(part, np.int64) for part in range(parts))
    return tuple(graph.add("Gather", x, index, axis=0) for index in indices)


def _content(graph: Graph, q: str, k: str, a: Architecture) -> str:
    """softmax(q kᵀ / √D): q and k [B, H, N, D] → [B, H, N, N]."""
    return graph.add("Softmax", _content_scores(graph, q, k, a), axis=-1)


def _content_scores(graph: Graph, q: str, k: str, a: Architecture) -> str:
    """q kᵀ / √D: q and k [B, H, N, D] → [B, H, N, N]."""
    q = graph.add("Mul", q, graph.constant(a.head_dim**-0.5))
    k = graph.add("Transpose", k, perm=[0, 1, 3, 2])
    return graph.add("MatMul", q, k)


def _output(graph: Graph, heads: str, name: str, a: Architecture, num_tokens: int) -> str:
    """Project the heads' results: [B, H, N, D] → [B, N, C]."""
    tokens = graph.add("Transpose", heads, perm=[0, 2, 1, 3])
    shape = graph.constant([0, num_tokens, a.width], np.int64)
    return linear(graph, graph.add("Reshape", tokens, shape), f"{name}.proj")
