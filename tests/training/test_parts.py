"""The number of parts in which a step computes its batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from convit_jax import plan
from convit_jax.models import architecture
from convit_jax.planning import compiling
from convit_jax.training import make_experiment
from convit_jax.training.parts import num_parts


def mesh_of(chips, kind="TPU v5 lite", fsdp=1):
    """Return what is read of a mesh."""
    devices = np.array([SimpleNamespace(device_kind=kind)])
    return SimpleNamespace(size=chips, devices=devices, shape={"fsdp": fsdp})


def parts_of(
    model, images_per_chip, *, chips=4, kind="TPU v5 lite", dtype="bfloat16", accumulate=0
):
    a, mesh = architecture(model, dtype=dtype), mesh_of(chips, kind)
    return num_parts(accumulate, images_per_chip * chips, a, mesh, pairs=True)


@pytest.mark.parametrize(
    ("model", "images_per_chip", "parts"),
    [
        # 197 x 432 values of two bytes an image: 12 MiB are 73 images.
        ("convit_small", 64, 1),
        ("convit_small", 72, 1),
        ("convit_small", 128, 2),
        ("convit_small", 256, 4),
        ("convit_small", 96, 2),
        # 166 images.
        ("convit_tiny", 128, 1),
        ("convit_tiny", 256, 2),
        # 41 images, fewer than 64.
        ("convit_base", 64, 1),
        ("convit_base", 128, 2),
        # 2 · 67 images can be divided into parts of 2 only.
        ("convit_small", 134, 1),
    ],
)
def test_a_large_batch_is_computed_in_parts_on_v5e(model, images_per_chip, parts):
    assert parts_of(model, images_per_chip) == parts
    assert parts_of(model, images_per_chip, chips=8) == parts
    assert parts_of(model, images_per_chip, kind="TPU v4") == 1
    assert parts_of(model, images_per_chip, kind="cpu") == 1


def test_sharded_parameters_are_not_gathered_for_every_part():
    a = architecture("convit_small", dtype="bfloat16")
    parts = [num_parts(0, 1024, a, mesh_of(8, fsdp=fsdp), pairs=True) for fsdp in (1, 2, 8)]
    assert parts == [2, 1, 1]


def test_pairs_of_images_stay_together():
    a = architecture("convit_small", dtype="bfloat16")
    assert num_parts(0, 130, a, mesh_of(1), pairs=False) == 2
    assert num_parts(0, 130, a, mesh_of(1), pairs=True) == 1


def test_float32_needs_twice_the_memory():
    assert parts_of("convit_tiny", 128, dtype="float32") == 2


def test_larger_images_are_fewer_in_a_part():
    """577 tokens at 384 pixels: 12 MiB are 25 images of ConViT-S, 64 · 197 tokens are 21."""
    a = architecture("convit_small", dtype="bfloat16", image_size=384)
    assert num_parts(0, 96, a, mesh_of(1), pairs=True) == 4


def test_the_config_has_the_last_word():
    assert parts_of("convit_small", 256, accumulate=1) == 1
    assert parts_of("convit_small", 64, accumulate=8, kind="cpu") == 8
    assert num_parts(0, 1024, architecture("convit_small"), None, pairs=True) == 1


@pytest.mark.parametrize(("accumulate", "parts"), [(0, 1), (2, 2)])
def test_the_steps_of_other_platforms_have_one_part(make_config, accumulate, parts):
    config = make_config(optimizer__accumulate=accumulate)
    experiment = make_experiment(config, num_examples=1000, num_classes=10)
    assert experiment.step_config.accumulate == parts


def test_a_plan_says_in_how_many_parts_a_batch_is_computed():
    fields = dict.fromkeys(compiling.Plan.__dataclass_fields__, 0)
    fields |= {"mesh": (8, 1), "batch_size": 1024, "batch_per_chip": 128}
    for parts, text in ((1, "1,024: 128 a chip"), (2, "1,024: 128 a chip, in 2 parts")):
        assert ("batch", text) in plan._rows(compiling.Plan(**fields | {"parts": parts}))
