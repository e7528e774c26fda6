"""Models by name, with newly initialised parameters or with weights."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.models import HEADS, VisionTransformer
from convit_jax.weights.loading import Weights, open_weights
from convit_jax.weights.model_checkpoints import find_checkpoint, read_run
from convit_jax.weights.torch_names import load_tensors, to_torch

log = logging.getLogger(__name__)


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = models.IMAGE_SIZE,
    seed: int = 0,
    *,
    pretrained: bool | str = False,
    **options: Any,
) -> VisionTransformer:
    """Create a model, with newly initialised parameters or with weights.

    With weights, what does not fit is adapted, and logged: the head is initialised anew if the
    number of classes differs, the patch kernel is summed or repeated for other channels
    (`adapt_channels`), and absolute positions are resampled for another image size.

    Args:
        name: one of `models.model_names()`, or timm's name of one: `convit_small.fb_in1k`.
        num_classes: number of logits; 0 for a model without a head, which returns features.
        image_size: side, or (height, width), in pixels.
        seed: seed of the parameters that are initialised.
        pretrained: True for the released weights, which are fetched once; or other weights of this
            model, anything that `load_model` takes.
        **options: fields of `Architecture` (`in_channels`, `drop_path_rate`, …), timm's names of
            them, or `attend` and `patch_form` as in `models.create_model`.

    Returns:
        A model that maps normalised float images [B, H, W, channels] to float32 logits
        [B, num_classes].

    Raises:
        InputError: an unknown name or field, a value out of range, weights that cannot be fetched,
            or weights of another model.
    """
    make = functools.partial(models.create_model, name, num_classes, image_size, seed, **options)
    if not pretrained:
        return make()
    model = nnx.eval_shape(make)  # checks the name and fields before anything is fetched
    weights = open_weights(name if pretrained is True else pretrained)
    weights.log_notes()
    with weights.naming_errors():
        weights.check_num_heads(model.architecture)
        tensors = {**weights.tensors_for(model.architecture), **_new_head(weights, model, make)}
        load_tensors(model, tensors)
    return model


def initial_model(weights: Weights) -> VisionTransformer:
    """Return the model as it was before the training of which these are the weights.

    Args:
        weights: of a run's workdir or checkpoint, whose config has the seed.

    Raises:
        InputError: they are not from a run, or the run did not start from new parameters.
    """
    run = None if weights.directory is None else read_run(find_checkpoint(weights.directory))
    if run is None or weights.card.architecture is None:
        raise InputError(
            f"{weights.name} is not a run of train.py, so its parameters before training are "
            "unknown: expected a workdir"
        )
    start = run.config.get("init_from")
    if start:
        raise InputError(
            f"the run {weights.name} did not start from new parameters but from {start}: compare "
            "it with those weights"
        )
    return models.build(weights.card.architecture, run.config["seed"])


def _new_head(
    weights: Weights, model: VisionTransformer, make: Callable[[], VisionTransformer]
) -> dict[str, np.ndarray]:
    """Return the tensors of newly initialised heads, or none if the weights' heads fit."""
    before, after = weights.num_classes(), model.architecture.num_classes
    if after in (0, before):
        return {}
    log.warning(
        "%s: the head for %d classes is replaced by a new one for %d", weights.name, before, after
    )
    heads = [name for name in HEADS if getattr(model, name) is not None]
    params = jax.jit(lambda: {n: nnx.to_pure_dict(nnx.state(getattr(make(), n))) for n in heads})()
    named = {f"{head}.{n}": np.asarray(v) for head in heads for n, v in params[head].items()}
    return to_torch(named, model.architecture)
