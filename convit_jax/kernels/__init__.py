"""Attention kernels: the functions that determine how fast a ConViT runs."""

from convit_jax.kernels.attention import attention_map
from convit_jax.kernels.choice import DEFAULT_ATTENTION, FORMS, Attention, Form, attention_for
