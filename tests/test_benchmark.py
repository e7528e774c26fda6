import json

import pytest

from convit_jax import benchmark
from convit_jax.errors import InputError


def test_a_model_is_measured(capsys):
    arguments = ["--batch-size", "2", "--image-size", "32", "--seconds", "0", "--json"]
    assert benchmark.main(["model", "convit_tiny", *arguments]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["model"] == "convit_tiny"
    # 192 fewer positions of 192 channels than at 224 pixels.
    assert measured["parameters"] == 5_710_512 - 192 * 192
    # Matrices of 2 M N operations a token: 4 tokens, 12 blocks of 12 width² each, and the ends.
    assert 0.04 < measured["gflops"] < 0.06
    for name in ("forward_images_per_second", "train_images_per_second"):
        assert measured[name] > 0


def test_an_unknown_model_is_told_before_any_is_measured():
    with pytest.raises(InputError, match="did you mean 'deit_tiny'"):
        benchmark.main(["model", "convit_tiny", "deit_tin"])
