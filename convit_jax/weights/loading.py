"""Weights by any name → their tensors, what is known of them, and a model."""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import nnx

from convit_jax import models
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.errors import InputError, boundary
from convit_jax.models import Architecture, VisionTransformer
from convit_jax.system.paths import user_path
from convit_jax.weights.card import Card
from convit_jax.weights.downloads import HUB_FILES, fetch, is_address
from convit_jax.weights.files import INDEX_SUFFIX, SUFFIXES, read_weights
from convit_jax.weights.hub_config import read_beside
from convit_jax.weights.model_checkpoints import find_checkpoint, is_checkpoint, read_checkpoint
from convit_jax.weights.positions import resample_positions
from convit_jax.weights.recognition import (
    check_tensors,
    has_gpsa,
    likely_heads,
    nearest_model,
    recognise,
    square_positions,
)
from convit_jax.weights.torch_names import load_tensors

# Where a .safetensors file of ours keeps its card.
METADATA_KEY = "convit_jax"
# After the name of weights: which of several models in them (`x.pth#model`).
_ENTRY = "#"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Opened weights.

    Attributes:
        name: what they were opened by.
        tensors: float32, by the released names and in the released layout.
        card: what they say of themselves.
        directory: the workdir or checkpoint that they are from, or None for a file.
        image_size: (height, width) that the config.json beside them says, or None.
        notes: what was chosen, left out or assumed when they were opened, a sentence each.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    card: Card
    directory: epath.Path | None = None
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    _said: set[str] = dataclasses.field(default_factory=set, init=False, repr=False)

    def architecture(self, **overrides: Any) -> Architecture:
        """What the tensors and the card say of the model, with some fields replaced.

        What was chosen when the weights were opened, and what is assumed now, is logged once.

        Raises:
            InputError: these are no such model's tensors, or something must be said by name.
        """
        with self.named():
            architecture = recognise(self.tensors, **(self._known() | overrides))
            self._check_card(architecture)
        self.say_notes()
        assumed = self.num_heads() is None and "num_heads" not in overrides
        if assumed:
            self._say(
                f"the tensors do not tell the number of heads: {architecture.num_heads} of "
                f"{architecture.head_dim} channels are assumed, as in every DeiT; for others: "
                "--override num_heads=…, or load_model(…, num_heads=…)"
            )
        return architecture

    def _known(self) -> dict[str, Any]:
        """What the tensors may not tell, and the card or the config.json beside them does."""
        said = self.card.architecture
        if said is not None:
            # The rows of positions tell the image size only where the grid is square.
            untold = ("num_heads", "image_size", "class_token_position")
            return {name: getattr(said, name) for name in untold}
        if self.image_size and not square_positions(self.tensors):
            return {"image_size": self.image_size}
        return {}

    def _check_card(self, architecture: Architecture) -> None:
        """Refuses a card of another model."""
        said = self.card.architecture
        for field in ("width", "depth", "gpsa_layers", "patch_size", "in_channels", "num_classes"):
            if said is not None and getattr(said, field) != getattr(architecture, field):
                raise InputError(
                    f"its card says {field}={getattr(said, field)}, its tensors "
                    f"{getattr(architecture, field)}"
                )
        names = self.card.class_names
        if names is not None and len(names) != architecture.num_classes:
            raise InputError(
                f"its card names {len(names)} classes (class_names), its tensors tell "
                f"{architecture.num_classes} apart"
            )

    def say_notes(self) -> None:
        """Logs what was chosen when the weights were opened, once."""
        for note in self.notes:
            self._say(note)

    def _say(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            log.info("%s: %s", self.name, note)

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
        with self.named():
            check_tensors(self.tensors)
        native, positions = self.native_image_size(), self.tensors.get("pos_embed")
        patch_size = self.tensors["patch_embed.proj.weight"].shape[-1]
        if positions is None or native is None or native == architecture.image_size:
            return self.tensors
        if patch_size != architecture.patch_size:
            return self.tensors  # another model's, of which every misfit is told
        old_grid = tuple(side // architecture.patch_size for side in native)
        resampled = resample_positions(positions, old_grid, architecture.grid)
        return {**self.tensors, "pos_embed": resampled}

    def num_classes(self) -> int:
        """How many classes the head tells apart."""
        with self.named():
            check_tensors(self.tensors)
        return self.tensors["head.weight"].shape[0]

    def likely_model(self) -> str | None:
        """The named model that the tensors have the shapes of, if there is one."""
        said = self.card.architecture
        return nearest_model(
            self.tensors, **({} if said is None else {"num_heads": said.num_heads})
        )

    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class, if it is known."""
        return self.card.names_for(self.num_classes())

    def preprocessing(self, architecture: Architecture) -> Preprocessing:
        """How images become the model's input."""
        with self.named():
            preprocessing = self.card.preprocessing(architecture)
        if self.card.assumed():
            self._say(
                f"nothing says how its images were prepared: {self.card.assumed()} are assumed (a "
                "config.json of timm's beside the weights would say)"
            )
        return preprocessing

    def num_heads(self) -> int | None:
        """The number of heads, where the card or the tensors tell."""
        said = self.card.architecture
        if said is not None:
            return said.num_heads
        return likely_heads(self.tensors) if has_gpsa(self.tensors) else None

    def native_image_size(self) -> tuple[int, int] | None:
        """The image size of the absolute positions, where it is known."""
        said = self.card.architecture
        if said is not None:
            return said.image_size
        return square_positions(self.tensors).get("image_size", self.image_size)

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
        MachineError: they cannot be read for want of permission, memory or such.
    """
    name = str(name)
    place, entry = _split(name)
    if is_address(place):
        kept = fetch(place)
        try:
            return _open_file(epath.Path(kept), name, place, entry)
        except InputError as error:
            # What was fetched now is whole; this may have been kept for long.
            raise InputError(f"{error} (kept at {kept}: remove that to fetch it again)") from error
    path = user_path(place)
    if "://" not in place:
        path = path.absolute()
    with boundary(place):
        is_directory, is_there = path.is_dir(), path.exists()
    if is_directory:
        whole = next((path / file for file in HUB_FILES if (path / file).is_file()), None)
        if whole is not None and not is_checkpoint(path):
            return _open_file(whole, name, str(whole), entry)
        tensors, card, note = read_checkpoint(find_checkpoint(path), entry)
        return Weights(name, tensors, card, path, notes=(note,) if note else ())
    if not is_there and not place.endswith((*SUFFIXES, INDEX_SUFFIX)):
        raise InputError(
            f"no weights at {place}: expected a file that ends in {', '.join(SUFFIXES)}, a "
            "directory with model.safetensors, a checkpoint or workdir, https://… or hf://ORG/NAME"
        )
    return _open_file(path, name, place, entry)


def _split(name: str) -> tuple[str, str | None]:
    """`x.pth#model` → x.pth and model, unless a file is called so."""
    place, mark, entry = name.rpartition(_ENTRY)
    if not mark or not place or "/" in entry or ("://" not in name and user_path(name).exists()):
        return name, None
    return place, entry


def _open_file(path: epath.Path, name: str, place: str, entry: str | None) -> Weights:
    """Opens a file, with what its metadata and the config.json beside it say."""
    file = read_weights(path, entry, place)
    said = file.metadata.get(METADATA_KEY)
    try:
        with boundary("its card", "cannot be read"):
            card = Card() if said is None else Card.from_json(json.loads(said))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    beside = read_beside(path)
    notes = (*file.notes, *beside.notes)
    names, head = beside.card.class_names, file.tensors.get("head.weight")
    count = beside.num_classes if names is None else len(names)
    if count is not None and head is not None and head.ndim and len(head) != count:
        notes += (
            f"config.json speaks of {count:,} classes, the tensors tell {len(head):,} apart: its "
            "preprocessing is taken, its class names are not",
        )
        names = None
    unsaid = {
        "class_names": names,
        "crop_fraction": beside.card.crop_fraction,
        "mean": beside.card.mean,
        "std": beside.card.std,
    }
    unsaid = {field: value for field, value in unsaid.items() if getattr(card, field) is None}
    return Weights(
        name,
        file.tensors,
        dataclasses.replace(card, **unsaid),
        image_size=beside.image_size,
        notes=notes,
    )


def load_model(weights: str | pathlib.Path, **overrides: Any) -> VisionTransformer:
    """A model with weights of any kind.

    Args:
        weights: a .safetensors file, or with PyTorch installed a .pth, .pth.tar, .pt, .ckpt or
            .bin file, of the released models, of timm's, or a training checkpoint of the released
            code, timm's or Lightning's; the index of a model's shards; a directory with
            model.safetensors; a checkpoint or a workdir of `train.py` (of its checkpoints the best
            by accuracy, or else the newest); the https:// address of such a file; or hf://ORG/NAME
            on huggingface.co, with huggingface_hub installed. Where there is a running average of
            the parameters it is taken, and a log line says so; `"x.pth#model"` asks for the other.
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
