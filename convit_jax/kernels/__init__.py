"""Attention kernels: the functions that determine how fast a ConViT runs."""

from convit_jax.kernels.attention import attention_map as attention_map
from convit_jax.kernels.choice import DEFAULT_ATTENTION as DEFAULT_ATTENTION
from convit_jax.kernels.choice import FORMS as FORMS
from convit_jax.kernels.choice import Attention as Attention
from convit_jax.kernels.choice import Form as Form
from convit_jax.kernels.choice import attention_for as attention_for
