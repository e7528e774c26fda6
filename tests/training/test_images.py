"""A run on real JPEGs with the full ImageNet recipe."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from convit_jax.config import resolve
from convit_jax.errors import InputError, RunError
from convit_jax.training import loop
from tests.helpers import read_metrics


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of JPEGs, 20 each for training, of which one is broken, and 5 for evaluation."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("china", "flower"):
        photograph = load_sample_image(f"{name}.jpg")
        for number in range(25):
            top, left = rng.integers(300), rng.integers(500)
            part = photograph[top : top + 120, left : left + 140]
            directory = root / ("train" if number < 20 else "eval") / name
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part).save(directory / f"{number:02d}.jpg")
    (root / "train" / "china" / "03.jpg").write_bytes(b"not an image")
    return root


@pytest.fixture
def recipe(photographs):
    """A function of overrides that returns the config of a short run with the full recipe."""
    from configs.imagenet import deit_recipe

    def make(**overrides):
        config = deit_recipe("convit_tiny")
        config.update(
            batch_size=8, eval_batch_size=8, train_for="4 steps", log_every="1 steps",
            eval_every="4 steps",
        )  # fmt: skip
        config.model.update(
            depth=2, gpsa_layers=1, head_dim=4, dtype="float32", patch_size=8, drop_path_rate=0.1
        )
        config.optimizer.update(warmup="1 steps", learning_rate_batch=8)
        config.checkpoint.every = "2 steps"
        config.data.update(
            train=f"folder:{photographs}/train", eval=f"folder:{photographs}/eval",
            image_size=(32,), num_workers=2, max_broken=0.05,
        )  # fmt: skip
        config.update_from_flattened_dict(overrides)
        return resolve(config)

    return make


def losses(workdir):
    lines = read_metrics(workdir)
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def test_the_full_recipe_trains_evaluates_and_resumes(recipe, tmp_path, package_log):
    outcome = loop.train(recipe(), str(tmp_path / "full"))
    assert outcome.step == 4
    assert outcome.evaluation["examples"] == 10
    assert all(np.isfinite(loss) for loss in losses(tmp_path / "full").values())

    # Without its last checkpoint the run resumes from the previous one, with the same result.
    shutil.copytree(tmp_path / "full", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    loop.train(recipe(), str(tmp_path / "cut"))
    assert "resuming after step 2" in package_log.text
    assert losses(tmp_path / "cut") == losses(tmp_path / "full")


def test_a_subset_of_the_data_is_logged_by_class(recipe, tmp_path, package_log):
    config = recipe(**{"data.fraction": 0.5, "keep_budget": True, "train_for": "2 epochs"})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_broken=0.1))
    outcome = loop.train(config, str(tmp_path))
    assert "20 examples, 10 of each of 2 classes" in package_log.text
    assert "03.jpg: not an image of a known format (1 of at most 2)" in package_log.text
    assert outcome.step == 2 * 2 / 0.5


def test_more_broken_images_than_allowed_end_the_run(recipe, tmp_path):
    with pytest.raises(RunError, match=r"03.jpg.*number 1 of 40.*max_broken allows 0"):
        loop.train(recipe(**{"data.max_broken": 0.0, "train_for": "20 steps"}), str(tmp_path))


def test_broken_images_found_before_a_resume_still_count(recipe, photographs, tmp_path):
    """Otherwise a run that is preempted every hour would never reach the limit."""
    images = tmp_path / "train"
    shutil.copytree(photographs / "train", images)
    changes = {"data.train": f"folder:{images}", "data.max_broken": 1 / 40, "augment.repeats": 1}
    loop.train(recipe(**changes, train_for="5 steps"), str(tmp_path / "run"))
    for number in ("03", "04"):
        (images / "china" / f"{number}.jpg").rename(images / f"{number}.jpg")
    (images / "04.jpg").rename(images / "china" / "03.jpg")
    (images / "03.jpg").rename(images / "china" / "04.jpg")
    with pytest.raises(RunError, match=r"04.jpg.*number 2 of 40.*max_broken allows 1"):
        loop.train(recipe(**changes, train_for="10 steps"), str(tmp_path / "run"))


def test_evaluation_data_with_other_classes_are_an_input_error(recipe, tmp_path):
    with pytest.raises(InputError, match=r"digits:test has other classes \(10\) than .* \(2\)"):
        loop.train(recipe(**{"data.eval": "digits:test"}), str(tmp_path))
