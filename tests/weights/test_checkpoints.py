"""Models in checkpoint directories and workdirs."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

import convit_jax
from convit_jax.errors import InputError
from convit_jax.weights import Card, new_path, open_weights, write_weights


@pytest.fixture
def checkpoint(four_heads, tmp_path):
    """The reference weights as a checkpoint directory."""
    path = tmp_path / "four_heads"
    write_weights(four_heads, new_path(str(path)), four_heads.architecture())
    return path


def test_a_round_trip_through_a_checkpoint_is_bit_identical(checkpoint, four_heads, assert_agrees):
    loaded = open_weights(checkpoint)
    assert set(loaded.tensors) == set(four_heads.tensors)
    for name, tensor in four_heads.tensors.items():
        assert np.array_equal(loaded.tensors[name], tensor), name
    assert loaded.card.architecture == four_heads.architecture()
    assert_agrees(loaded.model())


def test_the_best_checkpoint_of_a_workdir_is_chosen(checkpoint, tmp_path):
    steps = tmp_path / "run" / "checkpoints"
    for step, accuracy in ((10, 0.9), (20, 0.5), (30, None)):
        shutil.copytree(checkpoint, steps / str(step))
        if accuracy is not None:
            (steps / str(step) / "metrics").mkdir()
            (steps / str(step) / "metrics" / "metrics").write_text(
                json.dumps({"accuracy": accuracy})
            )
    from convit_jax.weights.model_checkpoints import find_checkpoint

    assert find_checkpoint(epath.Path(tmp_path / "run")).name == "10"
    assert find_checkpoint(epath.Path(steps)).name == "10"
    assert find_checkpoint(epath.Path(steps / "20")).name == "20"
    shutil.rmtree(steps / "10")
    shutil.rmtree(steps / "20")
    assert find_checkpoint(epath.Path(tmp_path / "run")).name == "30"


def test_a_workdir_of_training_is_loaded(workdir):
    """The running average is loaded, with the class names and the preprocessing."""
    import orbax.checkpoint as ocp

    weights = open_weights(workdir)
    assert weights.class_names() == tuple("0123456789")
    assert (weights.card.mean, weights.card.std) == ((0.3,), (0.4,))
    assert weights.preprocessing(weights.architecture()).image_size == (8, 8)
    model = convit_jax.load_model(workdir)
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        state = manager.restore(2, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))["state"]
    head = state["ema_params"]["head"]["kernel"]
    assert not np.array_equal(head, state["params"]["head"]["kernel"])
    assert jnp.array_equal(model.head.kernel[...], head)


def test_a_directory_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint in .*expected a workdir of train.py"):
        open_weights(tmp_path)


@pytest.mark.parametrize("damage", ["card", "tensors", "no card"])
def test_a_damaged_checkpoint_is_refused(damage, checkpoint):
    if damage == "card":
        (checkpoint / "card" / "metadata").write_text("{")
    elif damage == "tensors":
        for file in (checkpoint / "state").rglob("*"):
            if file.is_file() and file.stat().st_size > 10_000:
                file.write_bytes(b"")
    else:
        shutil.rmtree(checkpoint / "card")
    with pytest.raises(InputError, match=r"four_heads (is damaged|is not a complete checkpoint)"):
        open_weights(checkpoint)


def test_a_card_of_a_later_version_is_refused():
    with pytest.raises(InputError, match=r"card cannot be read.*colour"):
        Card.from_json({"colour": "blue"})


def test_another_image_size_resamples_the_positions(four_heads):
    larger = four_heads.model(image_size=(128, 160))
    assert larger.pos_embed.shape == (1, 8 * 10, 32)
    images = jnp.zeros((1, 128, 160, 3))
    assert nnx.jit(lambda model, x: model(x))(larger, images).shape == (1, 10)
