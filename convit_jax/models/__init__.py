"""ConViT and DeiT, from the GPSA layer to the named models."""

from convit_jax.models.architecture import Architecture, as_image_size, in_our_spelling
from convit_jax.models.arithmetic import forward_flops, training_flops
from convit_jax.models.gpsa import GPSA, PSA
from convit_jax.models.vit import HEADS, VisionTransformer, is_of_head
from convit_jax.models.zoo import (
    IMAGE_SIZE,
    TIMM_NAMES,
    TIMM_TAG,
    architecture,
    build,
    create_model,
    list_models,
    model_name,
    model_names,
)
