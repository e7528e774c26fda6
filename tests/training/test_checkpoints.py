import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from convit_jax.config import CheckpointConfig
from convit_jax.distributed import mesh
from convit_jax.errors import InputError, MachineError, RunError
from convit_jax.training import checkpoints as saving
from convit_jax.training import integrity, make_experiment
from convit_jax.training.restoration import restore_newest
from convit_jax.training.resumption import DataRecord, check_same_run
from convit_jax.weights import Card
from tests.processes import simulated_devices


@pytest.fixture
def state_at(make_config):
    """A function of the step that returns a state with that step."""
    experiment = make_experiment(make_config(), num_examples=100, num_classes=10)
    everywhere = mesh.replicated(mesh.create_mesh())
    fresh = jax.jit(experiment.init_state, out_shardings=everywhere)()

    def make(step):
        return dataclasses.replace(fresh, step=fresh.step + step)

    return make


@pytest.fixture
def store(tmp_path, make_config, state_at):
    """A function that saves the given {step: accuracy} and returns the open checkpoints."""
    opened = []

    def open_store(accuracies=None, **overrides):
        config = make_config(**overrides)
        store = saving.open_checkpoints(epath.Path(tmp_path / "checkpoints"), config.checkpoint)
        opened.append(store)
        for step, accuracy in (accuracies or {}).items():
            saving.save(store, state_at(step), step, config, Card(), accuracy, DataRecord(100))
        saving.finish_saving(store)
        return store

    yield open_store
    for store in opened:
        store.close()


def restore(store, state_at):
    everywhere = mesh.replicated(mesh.create_mesh())
    abstract = jax.eval_shape(lambda: state_at(0))
    return restore_newest(store, abstract, jax.tree.map(lambda _: everywhere, abstract))


def test_the_state_is_restored_bit_for_bit(store, state_at):
    saved = state_at(3)
    restored = restore(store({3: 0.5}), state_at)
    assert jax.tree.structure(saved) == jax.tree.structure(restored)
    assert jax.tree.all(jax.tree.map(np.array_equal, saved, restored))


def test_an_empty_directory_has_nothing_to_restore(store, state_at):
    assert restore(store(), state_at) is None


def test_the_latest_and_the_best_are_kept(store):
    accuracies = {1: 0.5, 2: 0.9, 3: 0.3, 4: None, 5: 0.2, 6: None}
    checkpoints = store(accuracies, checkpoint__keep_latest=2, checkpoint__keep_best=1)
    assert checkpoints.all_steps() == [2, 5, 6]
    assert checkpoints.best_step() == 2


def test_an_evaluation_is_worth_a_checkpoint_only_if_it_is_the_best(store):
    checkpoints, config = store({1: 0.5}), CheckpointConfig()
    assert saving.is_best(checkpoints, config, 0.6)
    assert not saving.is_best(checkpoints, config, 0.5)
    assert not saving.is_best(checkpoints, config, None)
    assert not saving.is_best(checkpoints, CheckpointConfig(keep_best=0), 0.6)


def test_a_checkpoint_without_disk_space_is_not_started(store, state_at, monkeypatch):
    checkpoints = store({1: 0.5})
    usage = shutil.disk_usage(checkpoints.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RunError, match=r"could not be written.* MB needed, 0.0 MB free.*step 1"):
        saving.save(checkpoints, state_at(2), 2, None, Card(), None, DataRecord(100))
    assert checkpoints.all_steps() == [1]


def truncate_arrays(checkpoint, other):
    for path in data_files(checkpoint):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)


def metadata_of(checkpoint):
    return checkpoint / "state" / "_METADATA"


def data_files(checkpoint):
    """The files that hold the arrays; orbax may leave some of them unused, and the largest, too."""
    return sorted((checkpoint / "state" / "ocdbt.process_0" / "d").iterdir())


def for_each_file(damage):
    """A damage to all files of a checkpoint; its arguments are a file and those of another."""

    def damage_all(checkpoint, other):
        for path, replacement in zip(
            data_files(checkpoint), itertools.cycle(data_files(other)), strict=False
        ):
            damage(path, replacement)

    return damage_all


def exchange_the_state(checkpoint, other):
    shutil.rmtree(checkpoint / "state")
    shutil.copytree(other / "state", checkpoint / "state")


# Functions of the damaged checkpoint and of another one.
DAMAGES = {
    "truncated arrays": truncate_arrays,
    "empty files": for_each_file(lambda path, other: path.write_bytes(b"")),
    "no files": for_each_file(lambda path, other: path.unlink()),
    "other files": for_each_file(lambda path, other: shutil.copyfile(other, path)),
    "garbled metadata": lambda checkpoint, other: metadata_of(checkpoint).write_text("{"),
    "no metadata": lambda checkpoint, other: metadata_of(checkpoint).unlink(),
    "no state": lambda checkpoint, other: shutil.rmtree(checkpoint / "state"),
    "another state": exchange_the_state,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_previous_one(
    damage, store, state_at, make_config, tmp_path, caplog
):
    store({4: 0.3, 8: 0.5}).close()
    damage(tmp_path / "checkpoints" / "8", tmp_path / "checkpoints" / "4")
    with caplog.at_level(logging.WARNING):
        reopened = store()
        assert int(restore(reopened, state_at).step) == 4
    assert "the checkpoint of step 8 is damaged" in caplog.text
    assert "kept as 8.damaged" in caplog.text
    # Nothing is lost, and the step can be saved again.
    assert (tmp_path / "checkpoints" / "8.damaged").is_dir()
    saving.save(reopened, state_at(8), 8, make_config(), Card(), 0.5, DataRecord(100))
    saving.finish_saving(reopened)
    assert reopened.all_steps() == [4, 8]


@pytest.mark.parametrize("metrics", ["", '{"accuracy": NaN}'])
def test_if_only_the_metrics_are_damaged_the_state_is_restored(
    metrics, store, state_at, tmp_path, caplog
):
    """Orbax would refuse all checkpoints. This one counts as not evaluated, and never as best."""
    store({4: 0.3, 8: 0.5}).close()
    (tmp_path / "checkpoints" / "8" / "metrics" / "metrics").write_text(metrics)
    reopened = store()
    assert "the metrics of the checkpoint of step 8 are damaged" in caplog.text
    assert int(restore(reopened, state_at).step) == 8
    assert reopened.best_step() == 4
    assert saving.evaluation_missing(reopened, 8, every=8)
    assert (tmp_path / "checkpoints" / "8.metrics.damaged" / "metrics").is_file()


def truncate(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path, other):
    path.write_bytes(b"")


def flip_a_bit(path, other):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


def remove(path, other):
    path.unlink()


def swap(path, other):
    """Copy the file from another step, or the one closest in size if names are random."""
    if not other.exists():
        size = path.stat().st_size
        other = min(other.parent.iterdir(), key=lambda p: abs(p.stat().st_size - size))
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, remove, swap])
def test_whichever_file_is_damaged_a_sound_state_is_restored(
    damage, store, state_at, make_config, tmp_path
):
    """The checkpoint's state is restored bit for bit, or that of the previous one."""
    store({4: 0.3, 8: 0.5}).close()
    directory = tmp_path / "checkpoints"
    shutil.copytree(directory, tmp_path / "sound")
    expected = {step: integrity.checksums(state_at(step)) for step in (4, 8)}
    files = [path for path in sorted((directory / "8").rglob("*")) if path.is_file()]
    assert len(files) > 10
    refused = []
    for path in files:
        name = path.relative_to(directory / "8")
        damage(path, directory / "4" / name)
        state = None
        with contextlib.suppress(InputError, RunError):  # with nothing renamed
            state = restore(store(), state_at)
        if state is None:
            refused.append(str(name))
            assert sorted(path.name for path in directory.iterdir()) == ["4", "8"]
        else:
            step = int(state.step)
            assert integrity.checksums(state) == expected[step], name
            assert {4: ["4", "8.damaged"], 8: ["4", "8"]}[step] == sorted(
                path.name for path in directory.iterdir() if ".metrics" not in path.name
            ), name
        assert (directory / "4").is_dir(), name
        shutil.rmtree(directory)
        shutil.copytree(tmp_path / "sound", directory)
    assert refused in ([], ["state/_METADATA"])  # which may describe another model


def test_any_flipped_bit_is_noticed(store, state_at, tmp_path):
    """Reading the arrays does not notice most flipped bits."""
    store({4: 0.3}).close()
    saved = jax.tree.map(np.asarray, state_at(4))
    saved_checksums = json.loads(
        (tmp_path / "checkpoints" / "4" / "checksums" / "metadata").read_text()
    )
    assert integrity.changed_arrays(saved, saved_checksums) == []
    rng = np.random.default_rng(0)

    def with_a_flipped_bit(array):
        flipped = array.copy().reshape(-1)
        raw = flipped.view(np.uint8)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        return flipped.reshape(array.shape)

    for _ in range(8):
        changed = jax.tree.map(with_a_flipped_bit, saved)
        assert integrity.changed_arrays(changed, saved_checksums) == list(saved_checksums)


def test_checksums_do_not_depend_on_the_devices(run_python):
    program = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from convit_jax.training.integrity import checksums
x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
half = x.astype("bfloat16")
tree = lambda sharding: jax.device_put({"a": x, "b": half}, sharding)
mesh = Mesh(np.array(jax.devices()), ("data",))
sums = [checksums(tree(NamedSharding(mesh, spec))) for spec in (P(), P("data"))]
assert len(jax.devices()) == 4 and sums[0] == sums[1], sums
assert checksums({"a": x[::-1], "b": x}) != checksums({"a": x, "b": x})
"""
    result = run_python("-c", program, timeout=120, **simulated_devices(4))
    assert result.returncode == 0, result.stderr


def test_a_checkpoint_of_an_earlier_version_has_no_checksums(store, state_at, tmp_path):
    store({4: 0.3}).close()
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "checksums")
    assert int(restore(store(), state_at).step) == 4


@pytest.mark.parametrize(
    ("fault", "raised", "message"),
    [
        (PermissionError(errno.EACCES, "x"), MachineError, "step 8: permission denied"),
        (OSError(errno.EIO, "x"), MachineError, "step 8: input/output error"),
        (OSError(errno.EMFILE, "x"), MachineError, "step 8: too many open files"),
        (ValueError("error opening file: Permission denied"), MachineError, "permission denied"),
        (RuntimeError("a defect"), RuntimeError, "a defect"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), jax.errors.JaxRuntimeError, "EXHAUSTED"),
    ],
    ids=range(6),
)
def test_errors_other_than_damage_rename_nothing(
    fault, raised, message, store, state_at, restoring_raises, tmp_path
):
    """Whatever restoring raises, the files exist and can be read."""
    store({4: 0.3, 8: 0.5}).close()
    restoring_raises(fault)
    with pytest.raises(raised, match=message):
        restore(store(), state_at)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]


def test_a_read_error_of_the_machine_is_not_damage(store, state_at, tmp_path, monkeypatch):
    store({4: 0.3, 8: 0.5}).close()
    metadata_of(tmp_path / "checkpoints" / "8").unlink()
    opened = type(epath.Path(tmp_path)).open

    def refuse(path, *arguments, **options):
        if "ocdbt.process_0/d/" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(type(epath.Path(tmp_path)), "open", refuse)
    with pytest.raises(MachineError, match="input/output error of the storage"):
        restore(store(), state_at)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]


def test_with_only_damaged_checkpoints_training_does_not_start_over(store, state_at, tmp_path):
    store({4: 0.3, 8: 0.5}).close()
    for step in ("4", "8"):
        truncate_arrays(tmp_path / "checkpoints" / step, None)
    for _ in range(2):  # the second start finds no checkpoint at all
        with pytest.raises(
            InputError, match=r"holds only damaged checkpoints \(4\.damaged, 8\.damaged\)"
        ):
            restore(store(), state_at)
    for damaged in (tmp_path / "checkpoints").iterdir():
        shutil.rmtree(damaged)
    assert restore(store(), state_at) is None


def check(store, config, classes=(), num_examples=100):
    check_same_run(epath.Path(store.directory), config, classes, num_examples)


def test_the_error_about_a_contradicting_config_names_the_keys(store, make_config):
    checkpoints = store({1: 0.5})
    check(checkpoints, make_config())
    with pytest.raises(InputError) as error:
        check(checkpoints, make_config(seed=3, model__depth=3, log_every="1 steps"))
    message = str(error.value)
    keys = "seed (0 in its checkpoint, 3 now); model.depth (2 in its checkpoint, 3 now)"
    assert f"{keys}. Use another" in message
    assert "log_every" not in message


def test_a_harmless_change_of_the_config_is_logged(store, make_config, caplog):
    with caplog.at_level(logging.INFO):
        check(store({1: 0.5}), make_config(log_every="1 steps"))
    assert "config.log_every was '3 steps' until step 1, is now '1 steps'" in caplog.text


def test_keys_of_another_version_are_ignored_and_the_others_compared(store, make_config, caplog):
    checkpoints = store({1: 0.5})
    path = epath.Path(checkpoints.directory) / "1" / "config" / "metadata"
    saved = json.loads(path.read_text())
    saved |= {"colour": "blue"}
    saved["optimizer"]["sharpness"] = 0.1
    path.write_text(json.dumps(saved))
    with caplog.at_level(logging.WARNING):
        check(checkpoints, make_config())
    assert "which are not compared: optimizer.sharpness, colour" in caplog.text
    with pytest.raises(InputError, match=r"seed \(0 in its checkpoint, 3 now\)"):
        check(checkpoints, make_config(seed=3))


def test_a_full_disk_is_a_run_error_and_loses_nothing(store, state_at, make_config, monkeypatch):
    checkpoints = store({1: 0.5})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(RunError, match=r"No space left on device.*kept: step 1\. Once that is"):
        saving.save(checkpoints, state_at(2), 2, make_config(), Card(), None, DataRecord(100))
    assert pathlib.Path(checkpoints.directory / "1").is_dir()
