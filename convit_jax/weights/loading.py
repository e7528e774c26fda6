"""Weights by any name → their tensors, what is known of them, and a model."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import nnx

from convit_jax import models
from convit_jax.data.preprocessing import Preprocessing
from convit_jax.errors import InputError
from convit_jax.models import Architecture, VisionTransformer
from convit_jax.paths import user_path
from convit_jax.weights.card import Card
from convit_jax.weights.downloads import fetch
from convit_jax.weights.files import SUFFIXES, read_metadata, read_tensors
from convit_jax.weights.model_checkpoints import find_checkpoint, read_checkpoint
from convit_jax.weights.positions import resample_positions
from convit_jax.weights.recognition import (
    likely_heads,
    nearest_model,
    recognise,
    square_positions,
)
from convit_jax.weights.torch_names import load_tensors

# Where a .safetensors file of ours keeps its card.
METADATA_KEY = "convit_jax"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Opened weights.

    Attributes:
        name: what they were opened by.
        tensors: float32, by the released names and in the released layout.
        card: what they say of themselves.
        directory: the workdir or checkpoint that they are from, or None for a file.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    card: Card
    directory: epath.Path | None = None

    def architecture(self, **overrides: Any) -> Architecture:
        """What the tensors and the card say of the model, with some fields replaced.

        Raises:
            InputError: these are no such model's tensors, or something must be said by name.
        """
        said = self.card.architecture
        # What the tensors may not tell: the rows of positions do only where the grid is square.
        untold = ("num_heads", "image_size", "class_token_position")
        known = {} if said is None else {name: getattr(said, name) for name in untold}
        with self.named():
            return recognise(self.tensors, **(known | overrides))

    def model(self, **overrides: Any) -> VisionTransformer:
        """The model, on another grid if `image_size` says so: absolute positions are resampled.

        Raises:
            InputError: the tensors do not fit; every misfit is listed.
        """
        architecture = self.architecture(**overrides)
        with self.named():
            return model_of(self.tensors_for(architecture), architecture)

    def tensors_for(self, architecture: Architecture) -> Mapping[str, np.ndarray]:
        """The tensors, with absolute positions for the architecture's grid."""
        native, positions = self.native_image_size(), self.tensors.get("pos_embed")
        if positions is None or native is None or native == architecture.image_size:
            return self.tensors
        old_grid = tuple(side // architecture.patch_size for side in native)
        resampled = resample_positions(positions, old_grid, architecture.grid)
        return {**self.tensors, "pos_embed": resampled}

    def num_classes(self) -> int:
        """How many classes the head tells apart."""
        return self.tensors["head.weight"].shape[0]

    def likely_model(self) -> str | None:
        """The named model that the tensors have the shapes of, if there is one."""
        return nearest_model(self.tensors)

    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, if it is known."""
        return self.card.names_for(self.num_classes())

    def preprocessing(self, architecture: Architecture) -> Preprocessing:
        """How images become the model's input."""
        with self.named():
            return self.card.preprocessing(architecture)

    def num_heads(self) -> int | None:
        """The number of heads, where the card or the tensors tell."""
        said = self.card.architecture
        return likely_heads(self.tensors) if said is None else said.num_heads

    def native_image_size(self) -> tuple[int, int] | None:
        """The image size of the absolute positions, where it is known."""
        said = self.card.architecture
        if said is not None:
            return said.image_size
        return square_positions(self.tensors).get("image_size")

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Names the weights, and the model they look like, in what goes wrong with them."""
        try:
            yield
        except InputError as error:
            likely = self.likely_model()
            hint = f"; these look like the weights of {likely}" if likely else ""
            raise InputError(f"{self.name}: {error}{hint}") from error


def open_weights(name: str | pathlib.Path) -> Weights:
    """Opens weights of any of the kinds that `load_model` takes.

    Raises:
        InputError: they are not there, damaged, or of another kind.
    """
    name = str(name)
    if name.startswith(("https://", "http://", "hf://")):
        path = epath.Path(fetch(name))
    else:
        path = user_path(name) if "://" in name else user_path(name).resolve()
    if path.is_dir():
        tensors, card = read_checkpoint(find_checkpoint(path))
        return Weights(name, tensors, card, path)
    if not path.exists() and path.suffix not in SUFFIXES:
        raise InputError(
            f"no weights at {name}: expected a file that ends in {', '.join(SUFFIXES)}, a "
            "checkpoint or workdir, https://… or hf://ORG/NAME"
        )
    tensors, said = read_tensors(path), read_metadata(path).get(METADATA_KEY)
    try:
        card = Card.from_json(json.loads(said)) if said else Card()
    except (ValueError, InputError) as error:
        raise InputError(f"{name}: {error}") from error  # damaged where it tells of its model
    return Weights(name, tensors, card)


def load_model(weights: str | pathlib.Path, **overrides: Any) -> VisionTransformer:
    """A model with weights of any kind.

    Args:
        weights: a .safetensors file, or with PyTorch installed a .pth, .pt or .bin file, of the
            released models, of timm's, or a training checkpoint of the released code; a checkpoint
            or a workdir of `train.py` (of its checkpoints the best by accuracy, or else the
            newest; the running average of the parameters where there is one); the
            https:// address of such a file; or hf://ORG/NAME on huggingface.co, with
            huggingface_hub installed.
        **overrides: fields of `Architecture`, where the tensors do not tell them or something
            else is wanted: `dtype="bfloat16"`, `num_heads`, or another `image_size`, to whose
            grid the absolute positions are then resampled.

    Returns:
        The model, in float32 unless `dtype` says otherwise.

    Raises:
        InputError: there are no such weights, they are damaged, or are not such a model's.
    """
    return open_weights(weights).model(**overrides)


def model_of(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> VisionTransformer:
    """A model of the given architecture with tensors of the released layout.

    Raises:
        InputError: they do not fit; every misfit is listed.
    """
    # Made as shapes only: every parameter is about to be replaced.
    model = nnx.eval_shape(lambda: models.build(architecture))
    load_tensors(model, tensors)
    return model
