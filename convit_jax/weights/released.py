"""Where the released weights of the named models are."""

from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.models import TIMM_NAMES, TIMM_TAG


def released_weights(name: str) -> str:
    """Return the location of a model's released weights: `hf://timm/convit_tiny.fb_in1k`.

    Args:
        name: one of `model_names()`, or timm's name of one, with or without a tag.

    Raises:
        InputError: no model has that name, or its weights were not released.
    """
    ours = models.model_name(name)
    if ours not in TIMM_NAMES:
        raise InputError(
            f"{name}: its weights were not released, only those of {', '.join(TIMM_NAMES)}"
        )
    return f"hf://timm/{TIMM_NAMES[ours]}.{name.partition('.')[2] or TIMM_TAG}"
