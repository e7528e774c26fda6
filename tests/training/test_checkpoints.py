import dataclasses
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from convit_jax.config import CheckpointConfig
from convit_jax.errors import InputError, RunError
from convit_jax.training import checkpoints as saving
from convit_jax.training import make_experiment, mesh
from convit_jax.training.resumption import check_same_run
from convit_jax.weights import Card


@pytest.fixture
def state_at(make_config):
    """A function of the step: a state that tells it from others."""
    experiment = make_experiment(make_config(), num_examples=100, num_classes=10)
    everywhere = mesh.replicated(mesh.create_mesh())
    fresh = jax.jit(experiment.init_state, out_shardings=everywhere)()

    def make(step):
        return dataclasses.replace(fresh, step=fresh.step + step)

    return make


@pytest.fixture
def store(tmp_path, make_config, state_at):
    """A function that opens the directory, after saving the given {step: accuracy}."""
    opened = []

    def open_store(accuracies=None, **overrides):
        config = make_config(**overrides)
        store = saving.open_checkpoints(epath.Path(tmp_path / "checkpoints"), config.checkpoint)
        opened.append(store)
        for step, accuracy in (accuracies or {}).items():
            saving.save(store, state_at(step), step, config, Card(), accuracy, 100)
        saving.finish_saving(store)
        return store

    yield open_store
    for one in opened:
        one.close()


def restore(store, state_at):
    everywhere = mesh.replicated(mesh.create_mesh())
    abstract = jax.eval_shape(lambda: state_at(0))
    return saving.restore_newest(store, abstract, jax.tree.map(lambda _: everywhere, abstract))


def test_what_is_saved_comes_back_bit_for_bit(store, state_at):
    saved = state_at(3)
    restored = restore(store({3: 0.5}), state_at)
    assert jax.tree.structure(saved) == jax.tree.structure(restored)
    assert jax.tree.all(jax.tree.map(np.array_equal, saved, restored))


def test_an_empty_directory_has_nothing_to_restore(store, state_at):
    assert restore(store(), state_at) is None


def test_the_latest_and_the_best_are_kept(store):
    accuracies = {1: 0.5, 2: 0.9, 3: 0.3, 4: None, 5: 0.2, 6: None}
    kept = store(accuracies, checkpoint__keep_latest=2, checkpoint__keep_best=1)
    assert kept.all_steps() == [2, 5, 6]
    assert kept.best_step() == 2


def test_an_evaluation_is_worth_a_checkpoint_only_if_it_is_the_best(store):
    kept, keep = store({1: 0.5}), CheckpointConfig()
    assert saving.is_best(kept, keep, 0.6)
    assert not saving.is_best(kept, keep, 0.5)
    assert not saving.is_best(kept, keep, None)
    assert not saving.is_best(kept, CheckpointConfig(keep_best=0), 0.6)


def test_a_checkpoint_that_has_no_room_is_not_begun(store, state_at, monkeypatch):
    kept = store({1: 0.5})
    usage = shutil.disk_usage(kept.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RunError, match=r"could not be written.* MB needed, 0.0 MB free.*step 1"):
        saving.save(kept, state_at(2), 2, None, Card(), None, 100)
    assert kept.all_steps() == [1]


def truncate_arrays(checkpoint):
    for path in (checkpoint / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)


def garble_metadata(checkpoint):
    (checkpoint / "state" / "_METADATA").write_text("{")


def garble_metrics(checkpoint):
    (checkpoint / "metrics" / "metrics").write_text("")


def remove_state(checkpoint):
    shutil.rmtree(checkpoint / "state")


@pytest.mark.parametrize("damage", [truncate_arrays, garble_metadata, garble_metrics, remove_state])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    damage, store, state_at, make_config, tmp_path, caplog
):
    store({4: 0.3, 8: 0.5}).close()
    damage(tmp_path / "checkpoints" / "8")
    with caplog.at_level(logging.WARNING):
        reopened = store()
        assert int(restore(reopened, state_at).step) == 4
    assert "the checkpoint of step 8 is damaged" in caplog.text
    assert "kept as 8.damaged" in caplog.text
    # Nothing is lost, and the step can be saved again.
    assert (tmp_path / "checkpoints" / "8.damaged").is_dir()
    saving.save(reopened, state_at(8), 8, make_config(), Card(), 0.5, 100)
    saving.finish_saving(reopened)
    assert reopened.all_steps() == [4, 8]


def test_where_all_are_damaged_the_run_does_not_begin_anew_by_itself(store, state_at, tmp_path):
    store({4: 0.3, 8: 0.5}).close()
    for step in ("4", "8"):
        truncate_arrays(tmp_path / "checkpoints" / step)
    with pytest.raises(RunError, match=r"none of the 2 checkpoints .* can be read"):
        restore(store(), state_at)


def check(store, config, classes=(), num_examples=100):
    check_same_run(epath.Path(store.directory), config, classes, num_examples)


def test_a_contradicting_config_is_refused_with_the_keys(store, make_config):
    kept = store({1: 0.5})
    check(kept, make_config())
    with pytest.raises(InputError) as error:
        check(kept, make_config(seed=3, model__depth=3, log_every="1 steps"))
    assert "seed (0 there, 3 here); model.depth (2 there, 3 here). Use another" in str(error.value)
    assert "log_every" not in str(error.value)


def test_a_change_that_means_no_harm_is_logged(store, make_config, caplog):
    with caplog.at_level(logging.INFO):
        check(store({1: 0.5}), make_config(log_every="1 steps"))
    assert "config.log_every was '3 steps' until step 1, is now '1 steps'" in caplog.text


def test_a_full_disk_is_told_in_a_sentence_and_loses_nothing(
    store, state_at, make_config, monkeypatch
):
    kept = store({1: 0.5})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "save", full)
    with pytest.raises(RunError, match=r"No space left on device.*kept: step 1\. Free some space"):
        saving.save(kept, state_at(2), 2, make_config(), Card(), None, 100)
    assert pathlib.Path(kept.directory / "1").is_dir()
