"""Small studies on the digits."""

import dataclasses

import pytest

from convit_jax.studies.results import Result


@pytest.fixture
def twins(make_config):
    """Configs of a ConViT with three layers, two of them GPSA, and of its DeiT, for 12 steps."""
    size = {"num_heads": 4, "head_dim": 4, "depth": 3, "patch_size": 4, "in_channels": 1}
    return {
        "convit": make_config(model=size | {"name": "convit_tiny", "gpsa_layers": 2}),
        "deit": make_config(model=size | {"name": "deit_tiny"}),
    }


@pytest.fixture
def make_result():
    """Return a function that makes a result from the fields that differ from a default."""
    default = {
        "cell": "c", "model": "convit", "variant": "a", "fraction": 1.0, "seed": 0,
        "locality_strength": 1.0, "gpsa_layers": 2, "examples": 1400, "steps": 12, "seen": 192,
        "top1": 0.5, "top5": 0.9, "loss": 1.0, "best_top1": 0.6, "classes": 10, "seconds": 6.0,
        "timed_steps": 12,
    }  # fmt: skip
    assert default.keys() == {field.name for field in dataclasses.fields(Result)}
    return lambda **fields: Result(**default | fields)
