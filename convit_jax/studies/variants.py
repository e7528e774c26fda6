"""Variants of a model in a study: the paper's Table 3, Fig. 8a and 9, and ConViT's rivals."""

import dataclasses
from typing import Any

from convit_jax.config import GPSA_ATTENTION, Config, architecture
from convit_jax.errors import InputError, nearest
from convit_jax.models import Architecture, list_models
from convit_jax.models.architecture import GPSA_FIELDS


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper's Table 3, or another change of a ConViT.

    Attributes:
        train_gating: learn the gates; otherwise they stay at one half (λ = 0).
        conv_init: start GPSA layers as convolutions.
        train_gpsa: train the GPSA layers; otherwise only the norms and feed-forward networks of
            those blocks are trained.
        use_gpsa: have GPSA layers; otherwise it is the DeiT of the same heads and width.
        init, positional_attention: fields of `Architecture`.
    """

    train_gating: bool
    conv_init: bool
    train_gpsa: bool
    use_gpsa: bool
    init: str = "default"
    positional_attention: str = "gated"


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
# Beyond Table 3: positional attention without a gate (paper Fig. 9), and the DeiT of row e with the
# initialisations that give it a convolution's bias.
_DEIT = TABLE_3["e"]
RIVALS = {
    "vanilla": Row(train_gating=False, conv_init=True, train_gpsa=True, use_gpsa=True,
                   positional_attention="vanilla"),
    "mimetic": dataclasses.replace(_DEIT, init="mimetic"),
    "impulse": dataclasses.replace(_DEIT, init="impulse"),
}  # fmt: skip
ROWS = TABLE_3 | RIVALS


@dataclasses.dataclass(frozen=True)
class Variant:
    """A change of a model: one of `ROWS`, or another point of Fig. 8a.

    Attributes:
        row: a key of `ROWS`, where a is the unchanged ConViT; "" for an unchanged model without
            GPSA layers, and for points of Fig. 8a.
        locality_strength, gpsa_layers: values that differ from the model's, otherwise None.
    """

    row: str = ""
    locality_strength: float | None = None
    gpsa_layers: int | None = None

    @property
    def unchanged(self) -> bool:
        """Whether the variant changes nothing."""
        return self in (Variant(), Variant(UNCHANGED))

    @property
    def label(self) -> str:
        """Name in tables, such as b or strength0.1_gpsa3."""
        if self.row:
            return self.row
        parts = []
        if self.locality_strength is not None:
            parts.append(f"strength{self.locality_strength:.12g}")
        if self.gpsa_layers is not None:
            parts.append(f"gpsa{self.gpsa_layers}")
        return "_".join(parts)


def unchanged_variant(config: Config) -> Variant:
    """Return the variant that changes nothing: row a for a ConViT, no row for a DeiT."""
    return Variant(UNCHANGED if _architecture(config).gpsa_layers else "")


def row_variant(row: str, config: Config, model: str) -> Variant:
    """Return the variant of a row, one of `ROWS`.

    Raises:
        InputError: an unknown row, or a model without GPSA layers.
    """
    if row not in ROWS:
        raise InputError(f"--variants: no row '{row}' in Table 3, {nearest(row, ROWS)}")
    _expect_gpsa(config, model, "--variants")
    return Variant(row)


def grid_variant(
    locality_strength: float | None, gpsa_layers: int | None, config: Config, model: str
) -> Variant:
    """Return the variant of a point of Fig. 8a; None stands for the model's own value.

    At the model's own values it is the unchanged variant. Without GPSA layers it has no locality
    strength.

    Raises:
        InputError: a model without GPSA layers.
    """
    _expect_gpsa(config, model, "--locality-strengths and --gpsa-layers")
    a = _architecture(config)
    layers = None if gpsa_layers == a.gpsa_layers else gpsa_layers
    strength = None if locality_strength == a.locality_strength else locality_strength
    if layers == 0:
        strength = None
    if layers is None and strength is None:
        return Variant(UNCHANGED)
    return Variant("", strength, layers)


def _expect_gpsa(config: Config, model: str, flag: str) -> None:
    if not _architecture(config).gpsa_layers:
        raise InputError(
            f"{flag}: the model '{model}' has no GPSA layers to change: expected only ConViTs in "
            "--models (row e is their DeiT)"
        )


def apply_variant(config: Config, variant: Variant) -> Config:
    """Return the config with a variant's changes.

    Raises:
        InputError: the variant does not fit the model.
    """
    if variant.unchanged:
        return config
    if variant.row:
        return _apply_row(config, ROWS[variant.row])
    changes: dict[str, Any] = {}
    if variant.locality_strength is not None:
        changes["locality_strength"] = variant.locality_strength
    if variant.gpsa_layers == 0:
        changes |= dict.fromkeys((*GPSA_FIELDS, "init"))
    if variant.gpsa_layers is not None:
        changes["gpsa_layers"] = variant.gpsa_layers
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    _architecture(changed)  # raises InputError for impossible values
    return changed


def _apply_row(config: Config, row: Row) -> Config:
    if not row.use_gpsa:
        return _deit_twin(config, row.init)
    model, optimizer = config.model, config.optimizer
    if row.positional_attention == "vanilla":
        model = dataclasses.replace(model, positional_attention="vanilla", use_gating=None)
    elif not row.train_gating:
        model = dataclasses.replace(model, use_gating=False)
    if not row.conv_init:
        model = dataclasses.replace(model, conv_init=False, locality_strength=None, init=None)
    if not row.train_gpsa:
        optimizer = dataclasses.replace(optimizer, frozen=(*optimizer.frozen, GPSA_ATTENTION))
    return dataclasses.replace(config, model=model, optimizer=optimizer)


def _deit_twin(config: Config, init: str) -> Config:
    """Return the config of the DeiT with the same heads and width, which starts by `init`.

    Raises:
        InputError: no such DeiT is known.
    """
    name = config.model.name.replace("convit", "deit")
    if name == config.model.name or name not in list_models():
        raise InputError(f"--variants: no DeiT is known for {config.model.name}")
    # qkv_bias is reset too: the paper's row e is a DeiT, which has these biases.
    reset = dict.fromkeys((*GPSA_FIELDS, "gpsa_layers", "qkv_bias", "class_token_position"))
    a = _architecture(config)
    heads = {"num_heads": a.num_heads, "head_dim": a.head_dim}
    start = {"init": None if init == "default" else init}
    model = dataclasses.replace(config.model, name=name, **reset, **heads, **start)
    return dataclasses.replace(config, model=model)


def _architecture(config: Config) -> Architecture:
    return architecture(config, num_classes=2)  # no variant depends on the number of classes
