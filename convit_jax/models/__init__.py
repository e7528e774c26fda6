"""ConViT and DeiT, from the GPSA layer to the named models."""

from convit_jax.models.architecture import Architecture, as_image_size
from convit_jax.models.arithmetic import forward_flops, training_flops
from convit_jax.models.gpsa import GPSA
from convit_jax.models.vit import VisionTransformer
from convit_jax.models.zoo import architecture, build, create_model, list_models
