"""Attention arithmetic: the functions that decide how fast a ConViT runs."""

from convit_jax.kernels.attention import attention_map, gated_attention, softmax_attention

__all__ = ["attention_map", "gated_attention", "softmax_attention"]
