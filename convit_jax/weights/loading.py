"""Opening weights of any kind: their tensors, their card, and a model."""

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
from convit_jax.errors import InputError, boundary, naming, nearest
from convit_jax.models import Architecture, VisionTransformer
from convit_jax.system.paths import user_path
from convit_jax.weights.card import Card
from convit_jax.weights.channels import adapt_channels
from convit_jax.weights.downloads import HUB_FILES, fetch, is_remote
from convit_jax.weights.files import INDEX_SUFFIX, SUFFIXES, read_weights
from convit_jax.weights.hub_config import read_beside
from convit_jax.weights.model_checkpoints import find_checkpoint, is_checkpoint, read_checkpoint
from convit_jax.weights.positions import resample_positions
from convit_jax.weights.recognition import (
    check_tensors,
    fields_from_positions,
    has_gpsa,
    likely_num_heads,
    nearest_model,
    recognise,
)
from convit_jax.weights.released import released_weights
from convit_jax.weights.torch_names import PATCH_KERNEL, load_tensors

# The metadata key of the card in this package's .safetensors files.
METADATA_KEY = "convit_jax"
# Separates the name of weights from the entry, if they contain several models (`x.pth#model`).
_ENTRY = "#"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Opened weights.

    Attributes:
        name: the name that they were opened with.
        tensors: float32, with the names and layout of the released weights.
        card: metadata stored with them.
        directory: the workdir or checkpoint that they are from, or None for a file.
        image_size: (height, width) from the config.json beside them, or None.
        heads_in_config: heads per layer, from the same file, or None.
        notes: what was chosen, ignored or assumed when they were opened, one sentence each.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    card: Card
    directory: epath.Path | None = None
    image_size: tuple[int, int] | None = None
    heads_in_config: int | None = None
    notes: tuple[str, ...] = ()
    _logged: set[str] = dataclasses.field(default_factory=set, init=False, repr=False)

    def architecture(self, **overrides: Any) -> Architecture:
        """Return the architecture from the tensors and the card, with some fields replaced.

        The notes and assumptions are logged, each once.

        Raises:
            InputError: the tensors are not a ConViT's or DeiT's, or a field that they do not
                determine must be passed.
        """
        overrides = models.in_our_spelling(overrides)
        with self.naming_errors():
            architecture = recognise(self.tensors, **(self._known_fields() | overrides))
            self._check_overrides(overrides)
            self._check_card(architecture, overrides)
        self.log_notes()
        if self.num_heads() is None and "num_heads" not in overrides:
            self._log_once(
                "the number of heads cannot be inferred from the tensors: "
                f"{architecture.num_heads} heads of {architecture.head_dim} channels are assumed, "
                "as in every DeiT; to change it: --override num_heads=…, or "
                "load_model(…, num_heads=…)"
            )
        return architecture

    def _known_fields(self) -> dict[str, Any]:
        """Return fields that the tensors may not determine, from the card or config.json."""
        card_architecture = self.card.architecture
        if card_architecture is not None:
            # The positions determine the image size only if the grid is square.
            fields = ["num_heads", "image_size", "class_token_position", "positional_attention"]
            fields += ["layer_scale"] if card_architecture.has_layer_scale else []
            return {name: getattr(card_architecture, name) for name in fields}
        known: dict[str, Any] = {}
        if self.image_size and not fields_from_positions(self.tensors):
            known["image_size"] = self.image_size
        if self.heads_in_config is not None and not has_gpsa(self.tensors):
            known["num_heads"] = self.heads_in_config
        return known

    def _check_overrides(self, overrides: Mapping[str, Any]) -> None:
        """Check that the classes requested are those of the head."""
        before = self.num_classes()
        after = overrides.get("num_classes", before)
        if after not in (0, before):
            raise InputError(
                f"num_classes={after}: the weights have {before} classes; for a new head, "
                "create_model(NAME, num_classes=…, pretrained=WEIGHTS), or train with "
                "config.init_from"
            )

    def _check_card(self, architecture: Architecture, overrides: Mapping[str, Any]) -> None:
        """Check that the card describes the same model as the tensors, but for what is adapted."""
        expected = self.card.architecture or architecture
        fields = ["width", "depth", "gpsa_layers", "patch_size"]
        fields += [name for name in ("in_channels", "num_classes") if name not in overrides]
        for field in fields:
            if getattr(expected, field) != getattr(architecture, field):
                raise InputError(
                    f"its card has {field}={getattr(expected, field)}, but its tensors "
                    f"have {getattr(architecture, field)}"
                )
        names = self.card.class_names
        if names is not None and len(names) != self.num_classes():
            raise InputError(
                f"its card names {len(names)} classes (class_names), but its tensors have "
                f"{self.num_classes()}"
            )

    def log_notes(self) -> None:
        """Log the notes, each once."""
        for note in self.notes:
            self._log_once(note)

    def _log_once(self, note: str, level: int = logging.INFO) -> None:
        if note not in self._logged:
            self._logged.add(note)
            log.log(level, "%s: %s", self.name, note)

    def model(self, **overrides: Any) -> VisionTransformer:
        """Build the model; for another `image_size` the absolute positions are resampled.

        Raises:
            InputError: the tensors do not fit the model; all mismatches are listed.
        """
        architecture = self.architecture(**overrides)
        with self.naming_errors():
            return model_from_tensors(self.tensors_for(architecture), architecture)

    def tensors_for(self, architecture: Architecture) -> Mapping[str, np.ndarray]:
        """Return the tensors, adapted to the architecture's channels and grid of patches.

        The patch kernel is summed or repeated for other channels, which is logged, and absolute
        positions are resampled to another grid. Without classes there are no tensors of the heads.
        """
        with self.naming_errors():
            check_tensors(self.tensors)
        adapted = self._adapted_kernel(architecture) | self._resampled_positions(architecture)
        tensors = {**self.tensors, **adapted}
        if architecture.num_classes:
            return tensors
        return {name: array for name, array in tensors.items() if not models.is_of_head(name)}

    def _adapted_kernel(self, architecture: Architecture) -> dict[str, np.ndarray]:
        """Return the patch kernel for the architecture's channels, if they are others."""
        kernel = self.tensors[PATCH_KERNEL]
        before, after = kernel.shape[1], architecture.in_channels
        if before == after:
            return {}
        done = "summed over them" if after == 1 else "repeated and scaled"
        note = f"the patch kernel for {before} channels is {done}, for {after}"
        self._log_once(note, logging.WARNING)
        return {PATCH_KERNEL: adapt_channels(kernel, after)}

    def _resampled_positions(self, architecture: Architecture) -> dict[str, np.ndarray]:
        """Return the absolute positions for the architecture's grid, if it is another."""
        native, positions = self.native_image_size(), self.tensors.get("pos_embed")
        patch_size = self.tensors[PATCH_KERNEL].shape[-1]
        if positions is None or native is None or native == architecture.image_size:
            return {}
        if patch_size != architecture.patch_size:
            return {}  # of another model; all mismatches are reported later
        old_grid = native[0] // patch_size, native[1] // patch_size
        return {"pos_embed": resample_positions(positions, old_grid, architecture.grid)}

    def num_classes(self) -> int:
        """Return the number of classes of the head."""
        with self.naming_errors():
            check_tensors(self.tensors)
        return self.tensors["head.weight"].shape[0]

    def likely_model(self) -> str | None:
        """Return the name of the model with the shapes of the tensors, if there is one."""
        a = self.card.architecture
        overrides = {} if a is None else {"num_heads": a.num_heads}
        return nearest_model(self.tensors, **overrides)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the name of each class, if they are known."""
        return self.card.names_for(self.num_classes())

    def preprocessing(self, architecture: Architecture) -> Preprocessing:
        """Return how images become the model's input."""
        with self.naming_errors():
            preprocessing = self.card.preprocessing(architecture)
        if self.card.assumptions():
            self._log_once(
                f"its preprocessing is unknown: {self.card.assumptions()} are assumed (timm's "
                "config.json beside the weights would specify it)"
            )
        return preprocessing

    def num_heads(self) -> int | None:
        """Return the number of heads, if the card or the tensors determine it."""
        card_architecture = self.card.architecture
        if card_architecture is not None:
            return card_architecture.num_heads
        return likely_num_heads(self.tensors) if has_gpsa(self.tensors) else self.heads_in_config

    def check_num_heads(self, architecture: Architecture) -> None:
        """Compare the numbers of heads, on which the shapes of plain attention do not depend.

        Raises:
            InputError: they differ.
        """
        num_heads = self.num_heads()
        if num_heads is not None and num_heads != architecture.num_heads:
            raise InputError(
                f"the weights have {num_heads} heads per layer, the model has "
                f"{architecture.num_heads}"
            )

    def native_image_size(self) -> tuple[int, int] | None:
        """Return the image size of the absolute positions, if it is known."""
        card_architecture = self.card.architecture
        if card_architecture is not None:
            return card_architecture.image_size
        return fields_from_positions(self.tensors).get("image_size", self.image_size)

    @contextlib.contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Add the weights' name, and the model that they look like, to InputErrors."""
        try:
            yield
        except InputError as error:
            model_name = self.likely_model()
            hint = f"; these look like the weights of {model_name}" if model_name else ""
            raise InputError(f"{self.name}: {error}{hint}") from error


def open_weights(name: str | pathlib.Path) -> Weights:
    """Open weights of any kind that `load_model` accepts.

    Raises:
        InputError: they do not exist, are damaged, or of another kind.
        MachineError: the machine cannot read them (permission, memory, storage).
    """
    name = str(name)
    location, entry = _split(name)
    if _is_model_name(location):
        location = released_weights(location)
    if is_remote(location):
        cached = fetch(location)
        try:
            return _open_file(epath.Path(cached), name, location, entry)
        except InputError as error:
            # Downloads are checked, so the file was damaged in the cache.
            raise InputError(
                f"{error} (cached at {cached}: remove it to fetch it again)"
            ) from error
    path = user_path(location)
    if "://" not in location:
        path = path.absolute()
    with boundary(location):
        is_directory, exists = path.is_dir(), path.exists()
    if is_directory:
        weights_file = next((path / file for file in HUB_FILES if (path / file).is_file()), None)
        if weights_file is not None and not is_checkpoint(path):
            return _open_file(weights_file, name, str(weights_file), entry)
        tensors, card, note = read_checkpoint(find_checkpoint(path), entry)
        return Weights(name, tensors, card, path, notes=(note,) if note else ())
    if not exists and not location.endswith((*SUFFIXES, INDEX_SUFFIX)):
        raise InputError(
            f"no weights at {location}: expected a file that ends in {', '.join(SUFFIXES)}, a "
            "directory with model.safetensors, a checkpoint or workdir, https://…, hf://ORG/NAME, "
            f"or the name of a released model: {nearest(location, models.TIMM_NAMES)}"
        )
    return _open_file(path, name, location, entry)


def _is_model_name(location: str) -> bool:
    """Whether it is the name of a model; a file or directory of that name has precedence."""
    try:
        models.model_name(location)
    except InputError:
        return False
    return not user_path(location).exists()


def _split(name: str) -> tuple[str, str | None]:
    """Split `x.pth#model` into x.pth and model, unless a file has that name."""
    location, separator, entry = name.rpartition(_ENTRY)
    if not separator or not location or "/" in entry:
        return name, None
    if "://" not in name and user_path(name).exists():
        return name, None
    return location, entry


def _open_file(path: epath.Path, name: str, location: str, entry: str | None) -> Weights:
    """Open a file, with the card in its metadata and the config.json beside it."""
    file = read_weights(path, entry, location)
    card_json = file.metadata.get(METADATA_KEY)
    with naming(location), boundary("its card", "cannot be read"):
        card = Card() if card_json is None else Card.from_json(json.loads(card_json))
    hub_config = read_beside(path)
    notes = (*file.notes, *hub_config.notes)
    names, head = hub_config.card.class_names, file.tensors.get("head.weight")
    num_classes = hub_config.num_classes if names is None else len(names)
    if num_classes is not None and head is not None and head.ndim and len(head) != num_classes:
        notes += (
            f"config.json has {num_classes:,} classes, but the tensors have {len(head):,}: its "
            "preprocessing is used, its class names are not",
        )
        names = None
    config_card = dataclasses.replace(hub_config.card, class_names=names)
    unknown = [field for field, value in vars(card).items() if value is None]
    card = dataclasses.replace(card, **{field: getattr(config_card, field) for field in unknown})
    kernel = file.tensors.get(PATCH_KERNEL)
    heads = None if kernel is None or not kernel.ndim else hub_config.num_heads(len(kernel))
    size = hub_config.image_size
    return Weights(name, file.tensors, card, None, size, heads, notes)


def load_model(weights: str | pathlib.Path, **overrides: Any) -> VisionTransformer:
    """Load a model with weights of any kind.

    Args:
        weights: a .safetensors file, or with PyTorch installed a .pth, .pth.tar, .pt, .ckpt or
            .bin file, of the released models or timm's, or a training checkpoint of the released
            code, timm or Lightning; the index of a model's shards; a directory with
            model.safetensors; a checkpoint or a workdir of `train.py` (of its checkpoints the best
            by accuracy, otherwise the newest); the https:// address of such a file; or
            hf://ORG/NAME on huggingface.co, with huggingface_hub installed; or the name of a model
            whose weights were released, ours or timm's: "convit_small". A running average of
            the parameters is preferred, which is logged; `"x.pth#model"` selects another model.
        **overrides: fields of `Architecture` that the tensors do not determine or that are to
            differ, or timm's names of them: `dtype="bfloat16"`, `num_heads`, another `image_size`,
            to whose grid the absolute positions are resampled, or other `in_channels`, to which
            the patch kernel is adapted.

    Returns:
        The model, in float32 unless `dtype` is overridden.

    Raises:
        InputError: the weights do not exist, are damaged, or are not a ConViT's or DeiT's.
    """
    return open_weights(weights).model(**overrides)


def model_from_tensors(
    tensors: Mapping[str, np.ndarray], architecture: Architecture
) -> VisionTransformer:
    """Build a model of an architecture from tensors in the released layout.

    Raises:
        InputError: the tensors do not fit; all mismatches are listed.
    """
    # Built as shapes only: every parameter is about to be replaced.
    model = nnx.eval_shape(lambda: models.build(architecture))
    load_tensors(model, tensors)
    return model
