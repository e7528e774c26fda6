"""Resumed runs with other classes, images or models, or on a faulty machine (D6)."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import unicodedata

import jax
import pytest
from etils import epath

from convit_jax.config import GPSA_ATTENTION
from convit_jax.config.files import make_config as config_of
from convit_jax.config.files import split_overrides
from convit_jax.distributed import mesh
from convit_jax.errors import InputError, MachineError, RunError
from convit_jax.training import checkpoints as saving
from convit_jax.training import loop, make_experiment
from convit_jax.training.optimizer import match_parameters, parameter_names
from convit_jax.training.restoration import restore_newest
from convit_jax.training.resumption import check_same_run
from convit_jax.weights import Card
from tests.field.builders import folder

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def first_run(make_config, tmp_path_factory):
    """The directory of a run of two steps on three classes, and a function returning its config."""
    root = tmp_path_factory.mktemp("first_run")
    folder(root / "images", CLASSES, count=8)

    def config(images=root / "images", **overrides):
        data = {"train": f"folder:{images}", "eval": f"folder:{images}", "image_size": (8,),
                "mean": (0.3,), "std": (0.4,)}  # fmt: skip
        return make_config(**{"train_for": "2 steps", "data": data} | overrides)

    loop.train(config(), str(root / "run"))
    return root, config


@pytest.fixture
def restored_run(first_run, tmp_path):
    """The first run's directory, a function that resumes it and one that reads its files.

    The directory is restored after the test.
    """
    root, config = first_run
    backup = tmp_path / "backup"
    shutil.copytree(root, backup)

    def files():
        run = root / "run"
        paths = (p for p in run.rglob("*") if p.is_file() and p.name != ".lock")
        return {p.relative_to(run): p.read_bytes() for p in paths}

    def resume(**overrides):
        return loop.train(config(**{"train_for": "4 steps"} | overrides), str(root / "run"))

    yield root, resume, files
    shutil.rmtree(root)
    shutil.copytree(backup, root)


@pytest.mark.parametrize(
    ("change", "classes"),
    [
        (lambda images: folder(images, ("dog",)), "ant, bee, cat, dog"),
        (lambda images: shutil.rmtree(images / "bee"), "ant, cat"),
        (lambda images: (images / "ant").rename(images / "wasp"), "bee, cat, wasp"),
    ],
    ids=["added", "removed", "renamed"],
)
def test_a_class_directory_changed_between_two_starts(restored_run, change, classes):
    root, resume, files = restored_run
    before = files()
    change(root / "images")
    with pytest.raises(InputError, match=f"was trained on ant, bee, cat; now {classes}"):
        resume()
    assert files() == before


def saved_run(tmp_path, make_config, names, num_examples=100):
    """Write the records of a checkpoint without a state and return the directory."""
    records = {
        "config": dataclasses.asdict(make_config()),
        "card": Card(class_names=tuple(names)).as_json(),
        "data": {"train_examples": num_examples},
    }
    for item, record in records.items():
        path = tmp_path / "checkpoints" / "5" / item / "metadata"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
    return epath.Path(tmp_path / "checkpoints")


def test_of_a_thousand_classes_only_the_differing_ones_are_named(tmp_path, make_config):
    names = [f"n{i:04}" for i in range(1000)]
    checkpoints = saved_run(tmp_path, make_config, names)
    check_same_run(checkpoints, make_config(), names, 100)
    more = sorted([*names[1:], "n2", "n3"])
    expected = "trained on 1,000 classes; now 1,001, new: n2, n3; gone: n0000"
    with pytest.raises(InputError, match=expected):
        check_same_run(checkpoints, make_config(), more, 100)
    swapped = [names[1], names[0], *names[2:]]
    with pytest.raises(InputError, match="in another order: label 0 was n0000, is n0001"):
        check_same_run(checkpoints, make_config(), swapped, 100)


def test_classes_in_another_form_of_unicode_are_the_same(tmp_path, make_config):
    apart, composed = (unicodedata.normalize(form, "Café") for form in ("NFD", "NFC"))
    assert apart != composed
    checkpoints = saved_run(tmp_path, make_config, ("Bar", apart))
    check_same_run(checkpoints, make_config(), ("Bar", composed), 100)


def test_an_image_added_between_two_starts_is_logged(tmp_path, make_config, caplog):
    checkpoints = saved_run(tmp_path, make_config, CLASSES)
    with caplog.at_level(logging.WARNING):
        check_same_run(checkpoints, make_config(), CLASSES, 100)
        assert not caplog.records
        check_same_run(checkpoints, make_config(), CLASSES, 101)
    assert "had 100 examples until step 5, now has 101: from here on their order" in caplog.text


def test_a_run_of_an_earlier_version_can_be_resumed(restored_run, caplog):
    """Its checkpoints do not record the number of examples."""
    root, resume, _ = restored_run
    shutil.rmtree(root / "run" / "checkpoints" / "2" / "data")
    assert resume().step == 4


def test_a_saved_value_that_is_now_out_of_range_is_not_damage(tmp_path, make_config):
    checkpoints = saved_run(tmp_path, make_config, CLASSES)
    path = checkpoints / "5" / "config" / "metadata"
    record = json.loads(path.read_text())
    record["optimizer"]["warmup_learning_rate"], record["optimizer"]["warmup"] = -1.0, "0 steps"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="trained on ant, bee, cat; now ant, bee"):
        check_same_run(checkpoints, make_config(), ("ant", "bee"), 100)


@pytest.mark.parametrize(
    ("item", "record"),
    [
        ("card", {"class_names": 5}),
        ("card", {"class_names": [1, None, "cat"]}),
        ("card", []),
        ("data", {"train_examples": "many"}),
        ("data", {"train_examples": [100]}),
        ("data", 3),
        ("config", {"model": []}),
    ],
)
def test_a_checkpoint_with_an_invalid_record_is_left_to_restoring(
    item, record, tmp_path, make_config
):
    checkpoints = saved_run(tmp_path, make_config, CLASSES)
    (checkpoints / "5" / item / "metadata").write_text(json.dumps(record))
    check_same_run(checkpoints, make_config(), ("other",), 7)


def test_the_classes_in_a_card_of_another_version_are_compared(tmp_path, make_config):
    checkpoints = saved_run(tmp_path, make_config, CLASSES)
    path = checkpoints / "5" / "card" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    with pytest.raises(InputError, match="trained on ant, bee, cat; now ant, bee"):
        check_same_run(checkpoints, make_config(), ("ant", "bee"), 100)


def damaged_names(root):
    return [p.name for p in (root / "run" / "checkpoints").iterdir() if "damaged" in p.name]


def test_a_state_of_another_shape_is_an_input_error_and_not_damage(first_run):
    """With the same config and classes, if the code builds another model."""
    root, config = first_run
    checkpoints = saving.open_checkpoints(epath.Path(root / "run/checkpoints"), config().checkpoint)
    experiment = make_experiment(config(), num_examples=24, num_classes=4)
    abstract = experiment.abstract_state()
    everywhere = mesh.replicated(mesh.create_mesh())
    with pytest.raises(
        InputError, match=r"run's: params.head.bias \(\(3,\) saved, \(4,\) expected\)"
    ):
        restore_newest(checkpoints, abstract, jax.tree.map(lambda _: everywhere, abstract))
    checkpoints.close()
    assert damaged_names(root) == []


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        MemoryError(),
        ValueError("NOT_FOUND: error reading x: [Errno 24] Too many open files"),
    ],
)
def test_a_fault_of_the_machine_damages_no_checkpoint(
    restored_run, fault, restoring_raises, monkeypatch
):
    root, resume, files = restored_run
    before = files()
    restoring_raises(fault)
    with pytest.raises(MachineError, match="the checkpoint of step 2: "):
        resume()
    monkeypatch.undo()
    assert damaged_names(root) == []
    assert files() == before
    assert resume().step == 4


def test_a_device_without_memory_damages_no_checkpoint(restored_run, restoring_raises):
    root, resume, _ = restored_run
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"
    restoring_raises(jax.errors.JaxRuntimeError(message))
    with pytest.raises(RunError, match="does not fit the devices' memory"):
        resume()
    assert damaged_names(root) == []


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("y"), AssertionError(), EOFError()])
def test_any_other_error_with_sound_files_is_not_damage(
    restored_run, error, restoring_raises, monkeypatch
):
    _, resume, files = restored_run
    before = files()
    restoring_raises(error)
    with pytest.raises(type(error)):
        resume()
    monkeypatch.undo()
    assert files() == before
    assert resume().step == 4


@pytest.mark.parametrize("metrics", ["", "[]", '{"accuracy": "x"}', "{}", "3"])
def test_unusable_metrics_lose_nothing(restored_run, metrics):
    root, resume, _ = restored_run
    shutil.copytree(root / "run/checkpoints/2", root / "run/checkpoints/1")
    (root / "run/checkpoints/2/metrics/metrics").write_text(metrics)
    assert resume().step == 4
    assert damaged_names(root) == ["2.metrics.damaged"]


@pytest.mark.parametrize(("depth", "gpsa"), [(12, 10), (12, 6), (12, 12), (14, 13), (3, 1)])
@pytest.mark.parametrize("row", ["f", "g"])
def test_all_gpsa_layers_are_frozen(row, depth, gpsa):
    """`ablation=f` (paper Table 3), with layers changed on the command line."""
    overrides, _ = split_overrides(
        [f"--config.model.depth={depth}", f"--config.model.gpsa_layers={gpsa}",
         "--config.model.num_heads=4", "--config.model.head_dim=4"]
    )  # fmt: skip
    config = config_of(f"configs/convit_s.py:ablation={row}", overrides)
    assert config.optimizer.frozen == (GPSA_ATTENTION,)
    params = make_experiment(config, num_examples=2000, num_classes=3).abstract_state().params
    mask = jax.tree.leaves(match_parameters(params, config.optimizer.frozen, "optimizer.frozen"))
    frozen = {n for n, masked in zip(parameter_names(params), mask, strict=True) if masked}
    attention = {n for n in parameter_names(params) if ".attention." in n}
    assert frozen == {n for n in attention if int(n.split(".")[1]) < gpsa}


def test_freezing_gpsa_layers_of_a_model_without_any_is_an_error():
    overrides, _ = split_overrides([f"--config.optimizer.frozen={GPSA_ATTENTION}"])
    config = config_of("configs/deit_s.py", overrides)
    with pytest.raises(InputError, match=r"'blocks.*{gpsa}.*' matches none of the"):
        make_experiment(config, num_examples=2000, num_classes=3)


@pytest.mark.parametrize("pattern", ["(", "x{99999999999999999999}", "[a-"])
def test_an_invalid_pattern(make_config, pattern):
    with pytest.raises(InputError, match="is not a valid regular expression"):
        make_experiment(make_config(optimizer__frozen=(pattern,)), num_examples=99, num_classes=3)
