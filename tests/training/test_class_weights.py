"""Class weights for folders of unequal size."""

import numpy as np
import pytest
from PIL import Image

from convit_jax.data import restrict_to_classes
from convit_jax.errors import InputError, RunError
from convit_jax.training import loop, make_experiment
from convit_jax.training.examples import class_weights_of, open_training_examples


@pytest.fixture
def unequal(tmp_path):
    """A folder with 8, 4 and 2 images of three classes."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate({"ant": 8, "bee": 4, "cat": 2}.items()):
        directory = tmp_path / "images" / name
        directory.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 80, (8, 8)) + 80 * label
            Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{number}.png")
    return str(tmp_path / "images")


def test_weights_are_inverse_frequencies_in_the_part_that_is_used(
    unequal, make_config, package_log
):
    package_log.set_level("INFO", "convit_jax")
    whole = make_config(data__train=f"folder:{unequal}", balance_classes=True)
    expected = [14 / (3 * 8), 14 / (3 * 4), 14 / (3 * 2)]
    assert class_weights_of(whole, open_training_examples(whole)) == pytest.approx(expected)
    assert "class weights 0.583 to 2.33, for 14 examples, 2 to 8" in package_log.text
    part = make_config(
        data__train=f"folder:{unequal}", data__fraction=0.5, data__classes=2, balance_classes=True
    )
    expected = [6 / (2 * 4), 6 / (2 * 2)]
    assert class_weights_of(part, open_training_examples(part)) == pytest.approx(expected)


def test_an_empty_class_is_named(unequal, make_config):
    """As in a slice of a TFDS dataset, or in some of its shards; a folder is refused before."""
    config = make_config(data__train=f"folder:{unequal}", balance_classes=True)
    without_bees = restrict_to_classes(open_training_examples(config), [0, 2])
    with pytest.raises(InputError, match="class 'bee' has no training examples in folder:"):
        class_weights_of(config, without_bees)


def test_a_run_is_built_with_the_weights_of_its_folder(unequal, make_config, tmp_path, monkeypatch):
    built = []

    def make(config, **arguments):
        built.append(make_experiment(config, **arguments).step_config.loss.class_weights)
        raise RunError("only built")

    monkeypatch.setattr(loop, "make_experiment", make)
    data = {"data__train": f"folder:{unequal}", "data__eval": f"folder:{unequal}"}
    config = make_config(**data, balance_classes=True, batch_size=8)
    with pytest.raises(RunError, match="only built"):
        loop.train(config, str(tmp_path / "run"))
    assert built == [pytest.approx((14 / 24, 14 / 12, 14 / 6))]
