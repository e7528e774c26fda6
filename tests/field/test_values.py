"""Values that users typed: each is refused in a sentence, or works as documented (D10)."""

import dataclasses
import math
import re

import pytest

from convit_jax.config import Config, resolve, template
from convit_jax.config.typed import keys
from convit_jax.console.command_line import describe_keys
from convit_jax.errors import InputError
from convit_jax.training import make_experiment

NOT_NUMBERS = (math.nan, math.inf, -math.inf)


def nested(values):
    """{"data.std": x} as nested sections."""
    tree = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    return tree


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.std", (0.0, 0.2, 0.2)),
        ("data.std", (-0.2, 0.2, 0.2)),
        ("data.std", (58.4, 57.1, 57.4)),
        ("data.mean", (math.nan, 0.5, 0.5)),
        ("data.mean", (123.7, 116.3, 103.5)),
        ("data.image_size", (0,)),
        ("data.image_size", (32, 32, 3)),
        ("data.image_size", ()),
        ("data.classes", 1),
        ("data.classes", -1),
        ("data.num_workers", -2),
        ("data.num_workers", 10**6),
        ("data.prefetch_batches", 0),
        ("data.eval_crop", 1.01),
        ("data.fraction", 0.0),
        ("data.max_broken", 1.0),
        ("optimizer.b1", 1.5),
        ("optimizer.b1", 1.0),
        ("optimizer.b2", -0.1),
        ("optimizer.eps", -1.0),
        ("optimizer.eps", 0.0),
        ("optimizer.weight_decay", -0.05),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate_batch", 0),
        ("optimizer.warmup_learning_rate", -1e-6),
        ("optimizer.min_learning_rate", -1e-6),
        ("optimizer.clip_norm", -1.0),
        ("optimizer.layer_decay", 1.1),
        ("optimizer.schedule_every", "batch"),
        ("optimizer.schedule_lag", -1),
        ("optimizer.warmup", "a while"),
        ("augment.zoom", 1.0),
        ("augment.zoom", -0.1),
        ("augment.rotate", -5.0),
        ("augment.shear", 90.0),
        ("augment.translate", 1.5),
        ("augment.flip", 2.0),
        ("augment.erase", -0.1),
        ("augment.mixup", -0.8),
        ("augment.cutmix", -1.0),
        ("augment.repeats", 0),
        ("augment.repeats", 10**6),
        ("augment.crop", "randomresized"),
        ("model.mlp_ratio", 0.0),
        ("model.depth", 0),
        ("model.drop_path_rate", 1.0),
        ("model.dtype", "float16"),
        ("model.locality_strength", -1.0),
        ("checkpoint.keep_latest", 0),
        ("checkpoint.keep_best", -1),
        ("checkpoint.every", "0 epochs"),
        ("mesh.fsdp", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 2**63),
        ("train_for", "0 epochs"),
        ("train_for", "-1 epochs"),
        ("train_for", "9" * 400 + " epochs"),
        ("eval_every", "0.0 epochs"),
        ("profile_at", -1),
        ("label_smoothing", 1.0),
        ("ema_decay", 1.0),
        ("attention", "flash"),
    ],
)
def test_a_value_out_of_its_keys_range(name, value):
    with pytest.raises(InputError, match=rf"config\.{re.escape(name)}=.*: expected "):
        resolve(nested({name: value}))


@pytest.mark.parametrize("number", NOT_NUMBERS)
def test_no_number_is_nan_or_infinite(number):
    floats = {
        name: number if field.type in (float, float | None) else (number,) * 3
        for name, field in keys(Config).items()
        if field.type in (float, float | None, tuple[float, ...])
    }
    assert len(floats) > 30
    for name, value in floats.items():
        with pytest.raises(InputError, match=rf"config\.{re.escape(name)}=.*: expected "):
            resolve(nested({name: value}))


def test_a_hidden_width_of_nothing():
    with pytest.raises(InputError, match=r"mlp_ratio=0.001: expected at least 0\.00521"):
        resolve(nested({"model.mlp_ratio": 0.001}))


def test_the_largest_seed_is_another_than_the_smallest():
    import jax

    assert jax.random.key(resolve({"seed": 2**32 - 1}).seed) != jax.random.key(0)


@pytest.mark.parametrize("bound", ["erase_area", "erase_ratio"])
@pytest.mark.parametrize("value", [(0.5, 0.1), (0.1,), (0.0, 0.5), (0.1, 0.2, 0.3)])
def test_a_span_that_is_none(bound, value):
    with pytest.raises(
        InputError, match=rf"{bound}=.*: expected \(smallest, largest\), each above"
    ):
        resolve(nested({"augment.erase": 0.25, f"augment.{bound}": value}))


@pytest.mark.parametrize(
    ("values", "unread"),
    [
        ({"augment.crop_scale": (0.5, 1.0)}, "augment.crop_scale"),
        ({"augment.crop_scale": (0.5, 1.0), "augment.crop": "pad"}, "augment.crop_scale"),
        ({"augment.crop_ratio": (0.5, 2.0)}, "augment.crop_ratio"),
        ({"augment.crop_padding": 2}, "augment.crop_padding"),
        ({"augment.crop_padding": 2, "augment.crop": "random_resized"}, "augment.crop_padding"),
        ({"augment.erase_area": (0.1, 0.2)}, "augment.erase_area"),
        ({"augment.erase_ratio": (0.5, 2.0)}, "augment.erase_ratio"),
        ({"augment.mix_prob": 0.5}, "augment.mix_prob"),
        ({"augment.mix_group": 64}, "augment.mix_group"),
        ({"augment.mix_switch_prob": 0.1, "augment.mixup": 0.8}, "augment.mix_switch_prob"),
        ({"augment.mix_switch_prob": 0.1, "augment.cutmix": 1.0}, "augment.mix_switch_prob"),
        ({"data.fraction_choice": "random"}, "data.fraction_choice"),
        (
            {"optimizer.warmup": "0 epochs", "optimizer.warmup_learning_rate": 1e-5},
            "optimizer.warmup_learning_rate",
        ),
        (
            {"optimizer.weight_decay": 0.0, "optimizer.no_decay": (r".*\.bias",)},
            "optimizer.no_decay",
        ),
        ({"init_from": "W", "model.conv_init": False}, "model.conv_init"),
        ({"init_from": "W", "model.locality_strength": 2.0}, "model.locality_strength"),
    ],
)
def test_a_key_that_nothing_would_read(values, unread):
    with pytest.raises(InputError, match=rf"config\.{unread}=.* would not be read, as config"):
        resolve(nested(values))


@pytest.mark.parametrize(
    "values",
    [
        {"augment.crop_scale": (0.5, 1.0), "augment.crop": "random_resized"},
        {"augment.crop_padding": 2, "augment.crop": "pad"},
        {"augment.erase_area": (0.1, 0.2), "augment.erase": 0.1},
        {"augment.mix_prob": 0.5, "augment.cutmix": 1.0},
        {"augment.mix_group": 64, "augment.mixup": 0.8},
        {"augment.mix_switch_prob": 0.1, "augment.mixup": 0.8, "augment.cutmix": 1.0},
        {"data.fraction_choice": "random", "data.fraction": 0.5},
        {"optimizer.warmup_learning_rate": 1e-5},
        {
            "augment.crop_scale": (0.08, 1.0),
            "augment.crop": "none",
        },  # a default value is always allowed
    ],
)
def test_a_key_that_is_read(values):
    resolve(nested(values))


def test_a_condition_on_an_undecided_key_is_assumed_to_hold():
    """A study sets the fractions itself."""
    values = nested({"data.fraction_choice": "random"})
    assert resolve(values, undecided=("data.fraction",)).data.fraction_choice == "random"


def test_a_recipe_whose_crop_is_switched_off_gets_advice():
    config = template()
    config.augment.crop_scale = (0.35, 1.0)
    expected = r"augment.crop is 'none': leave it at \(0.08, 1.0\), or set augment.crop to 'random_"
    with pytest.raises(InputError, match=expected):
        resolve(config)


@pytest.mark.parametrize("key", ["train_for", "eval_every", "log_every", "checkpoint__every"])
def test_a_part_of_an_epoch_that_is_less_than_a_step(make_config, key):
    config = make_config(**{key: "0.02 epochs"})
    expected = f"config.{key.replace('__', '.')}='0.02 epochs' is less than half a step"
    with pytest.raises(InputError, match=expected):
        make_experiment(config, num_examples=100, num_classes=10)


def test_a_warm_up_of_part_of_a_step_is_none(make_config):
    make_experiment(make_config(optimizer__warmup="0.02 epochs"), num_examples=100, num_classes=10)


def test_a_warm_up_that_is_longer_than_the_run(make_config, caplog):
    with pytest.raises(InputError, match=r"warmup='20 steps' is longer than the run, .*'12 steps'"):
        make_config(optimizer__warmup="20 steps")
    # A run of a few steps to try something out, with the recipe's own warm-up, gets a warning.
    short = make_config(optimizer__warmup="5 epochs", train_for="2 steps")
    with caplog.at_level("WARNING"):
        make_experiment(short, num_examples=160, num_classes=10)
    assert "warm-up of 50 steps is longer than the run of 2" in caplog.text


@pytest.mark.parametrize("first", [9, 12, 500])
def test_a_profile_beyond_the_runs_end(make_config, first):
    with pytest.raises(InputError, match=f"profile_at={first}: .* the run has 12 steps"):
        make_experiment(make_config(profile_at=first), num_examples=100, num_classes=10)


def test_a_profile_of_the_last_five_steps(make_config):
    make_experiment(make_config(profile_at=8), num_examples=100, num_classes=10)


def test_a_run_of_more_steps_than_can_be_counted(make_config):
    with pytest.raises(InputError, match=r"train_for='1000000000 epochs'.*at most 2147483647"):
        make_experiment(
            make_config(train_for="1000000000 epochs"), num_examples=100, num_classes=10
        )


def test_padding_as_large_as_the_image():
    values = {"augment.crop": "pad", "augment.crop_padding": 32, "data.image_size": (32,)}
    with pytest.raises(
        InputError, match="crop_padding=32: expected less than the image's side, 32"
    ):
        resolve(nested(values))


def test_an_impossible_number_of_channels():
    values = {"model.in_channels": 7, "data.mean": (0.5,) * 7, "data.std": (0.5,) * 7}
    with pytest.raises(InputError, match="in_channels=7: images are read with 1 channel"):
        resolve(nested(values))


def test_help_includes_ranges_and_conditions():
    text = " ".join(describe_keys().split())
    for words in (
        "optimizer.b1 (float, default 0.9; at least 0, below 1)",
        "seed (int, default 0; at least 0, below 4294967296)",
        "augment.crop (str, default 'none'; 'random_resized' or 'simple' or 'pad' or 'none')",
        "Read where augment.crop is 'pad' or 'simple'.",
        "model.depth (int, default the model's own; 1 to 256)",
    ):
        assert words in text, words


def test_every_number_has_a_range():
    """Only regular expressions need no range."""
    without = {
        name
        for name, field in keys(Config).items()
        if not isinstance(field.default, str | bool)
        and field.type not in (str | None, bool | None)
        and not field.metadata["range"]
    }
    assert without == {"optimizer.no_decay", "optimizer.frozen"}  # regular expressions


def test_defaults_and_shipped_values_are_in_range():
    assert resolve(dataclasses.asdict(Config())) == Config()
