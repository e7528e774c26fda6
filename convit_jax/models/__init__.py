"""ConViT and DeiT, from the GPSA layer to the named models."""

from convit_jax.models.architecture import Architecture as Architecture
from convit_jax.models.architecture import as_image_size as as_image_size
from convit_jax.models.arithmetic import forward_flops as forward_flops
from convit_jax.models.arithmetic import training_flops as training_flops
from convit_jax.models.gpsa import GPSA as GPSA
from convit_jax.models.vit import VisionTransformer as VisionTransformer
from convit_jax.models.zoo import architecture as architecture
from convit_jax.models.zoo import build as build
from convit_jax.models.zoo import create_model as create_model
from convit_jax.models.zoo import list_models as list_models
