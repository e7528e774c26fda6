"""What a study changes in a model: the rows of the paper's Table 3 and the axes of its Fig. 8a."""

import dataclasses

from convit_jax.config import GPSA_ATTENTION, Config, architecture
from convit_jax.errors import InputError, nearest
from convit_jax.models import Architecture, list_models
from convit_jax.models.architecture import GPSA_FIELDS

# The data decide how many; no variant depends on it.
_ANY_CLASSES = 2


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper's Table 3, by its columns.

    Attributes:
        train_gating: learn the gates; otherwise they stay at one half (λ = 0).
        conv_init: start GPSA layers as convolutions.
        train_gpsa: train the GPSA layers; otherwise of those blocks only norms and feed-forward
            networks learn.
        use_gpsa: have GPSA layers at all.
    """

    train_gating: bool
    conv_init: bool
    train_gpsa: bool
    use_gpsa: bool


TABLE_3 = {
    "a": Row(train_gating=True, conv_init=True, train_gpsa=True, use_gpsa=True),
    "b": Row(train_gating=False, conv_init=True, train_gpsa=True, use_gpsa=True),
    "c": Row(train_gating=True, conv_init=False, train_gpsa=True, use_gpsa=True),
    "d": Row(train_gating=False, conv_init=False, train_gpsa=True, use_gpsa=True),
    "e": Row(train_gating=False, conv_init=False, train_gpsa=False, use_gpsa=False),
    "f": Row(train_gating=False, conv_init=True, train_gpsa=False, use_gpsa=True),
    "g": Row(train_gating=False, conv_init=False, train_gpsa=False, use_gpsa=True),
}
UNCHANGED = "a"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A change of a model: a row of Table 3, or another point of Fig. 8a.

    Attributes:
        row: a to g, where a is a ConViT as it is; "" for a model without GPSA layers as it is, and
            for points of Fig. 8a.
        locality_strength, gpsa_layers: where they are other than the model's own.
    """

    row: str = ""
    locality_strength: float | None = None
    gpsa_layers: int | None = None

    @property
    def unchanged(self) -> bool:
        """Whether the model stays as its config has it."""
        return self in (Variant(), Variant(UNCHANGED))

    @property
    def label(self) -> str:
        """What tables call it: b, strength0.1_gpsa3."""
        if self.row:
            return self.row
        parts = []
        if self.locality_strength is not None:
            parts.append(f"strength{self.locality_strength:.12g}")
        if self.gpsa_layers is not None:
            parts.append(f"gpsa{self.gpsa_layers}")
        return "_".join(parts)


def as_it_is(config: Config) -> Variant:
    """The variant that changes nothing: row a of a ConViT, none of a DeiT."""
    return Variant(UNCHANGED if _of(config).gpsa_layers else "")


def row_variant(row: str, config: Config, model: str) -> Variant:
    """A row of Table 3.

    Raises:
        InputError: there is no such row, or the model has no GPSA layers.
    """
    if row not in TABLE_3:
        raise InputError(f"--variants: no row '{row}' in Table 3, {nearest(row, TABLE_3)}")
    _expect_gpsa(config, model, "--variants")
    return Variant(row)


def grid_variant(
    locality_strength: float | None, gpsa_layers: int | None, config: Config, model: str
) -> Variant:
    """A point of Fig. 8a; None is the model's own value.

    Where there are no GPSA layers the locality strength means nothing, and at the model's own
    values the model is as it is.

    Raises:
        InputError: the model has no GPSA layers.
    """
    _expect_gpsa(config, model, "--locality-strengths and --gpsa-layers")
    own = _of(config)
    layers = None if gpsa_layers == own.gpsa_layers else gpsa_layers
    strength = None if locality_strength == own.locality_strength else locality_strength
    if layers == 0:
        strength = None
    if layers is None and strength is None:
        return Variant(UNCHANGED)
    return Variant("", strength, layers)


def _expect_gpsa(config: Config, model: str, flag: str) -> None:
    if not _of(config).gpsa_layers:
        raise InputError(
            f"{flag}: the model '{model}' has no GPSA layers to change; name ConViTs by --models "
            "(row e is their DeiT)"
        )


def varied(config: Config, variant: Variant) -> Config:
    """The experiment with a variant's changes.

    Raises:
        InputError: the model cannot be changed so.
    """
    if variant.unchanged:
        return config
    if variant.row:
        return _ablated(config, TABLE_3[variant.row])
    changes: dict[str, float | int] = {}
    if variant.locality_strength is not None:
        changes["locality_strength"] = variant.locality_strength
    if variant.gpsa_layers is not None:
        changes["gpsa_layers"] = variant.gpsa_layers
    model = dataclasses.replace(config.model, **changes)
    if variant.gpsa_layers == 0:
        model = dataclasses.replace(model, **dict.fromkeys(GPSA_FIELDS))
    changed = dataclasses.replace(config, model=model)
    _of(changed)
    return changed


def _ablated(config: Config, row: Row) -> Config:
    own, model, optimizer = _of(config), config.model, config.optimizer
    if not row.use_gpsa:
        return dataclasses.replace(config, model=_plain_twin(config, own))
    if not row.train_gating:
        model = dataclasses.replace(model, use_gating=False)
    if not row.conv_init:
        model = dataclasses.replace(model, conv_init=False, locality_strength=None)
    if not row.train_gpsa:
        optimizer = dataclasses.replace(optimizer, frozen=(*optimizer.frozen, GPSA_ATTENTION))
    return dataclasses.replace(config, model=model, optimizer=optimizer)


def _plain_twin(config: Config, own: Architecture) -> object:
    """The DeiT of the same heads and width.

    Raises:
        InputError: no such DeiT is known.
    """
    name = config.model.name.replace("convit", "deit")
    if name == config.model.name or name not in list_models():
        raise InputError(f"--variants e: no DeiT is known for {config.model.name}")
    # qkv_bias belongs to the twin too: the paper's row e is a DeiT, which has them.
    taken_away = dict.fromkeys((*GPSA_FIELDS, "gpsa_layers", "qkv_bias", "class_token_position"))
    same = {"num_heads": own.num_heads, "head_dim": own.head_dim}
    return dataclasses.replace(config.model, name=name, **taken_away, **same)


def _of(config: Config) -> Architecture:
    return architecture(config, _ANY_CLASSES)
