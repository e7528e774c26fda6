"""Attention arithmetic: the functions that decide how fast a ConViT runs."""

from convit_jax.kernels.attention import attention_map
from convit_jax.kernels.dispatch import (
    FORMS,
    Form,
    check_form,
    compiled_for,
    gated_attention,
    self_attention,
    softmax_attention,
    traced_for,
    wants_separate_parts,
)

__all__ = [
    "FORMS",
    "Form",
    "attention_map",
    "check_form",
    "compiled_for",
    "gated_attention",
    "self_attention",
    "softmax_attention",
    "traced_for",
    "wants_separate_parts",
]
