"""Runs that go on: with other classes, other images, other models, or a machine at fault (D6)."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import unicodedata

import jax
import orbax.checkpoint as ocp
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
from convit_jax.training.resumption import check_same_run
from convit_jax.weights import Card
from tests.field.builders import folder

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def begun(make_config, tmp_path_factory):
    """A run of two steps on three classes: its workdir and a function that makes its config."""
    root = tmp_path_factory.mktemp("begun")
    folder(root / "images", CLASSES, count=8)

    def config(images=root / "images", **changes):
        data = {"train": f"folder:{images}", "eval": f"folder:{images}", "image_size": (8,),
                "mean": (0.3,), "std": (0.4,)}  # fmt: skip
        return make_config(**{"train_for": "2 steps", "data": data} | changes)

    loop.train(config(), str(root / "run"))
    return root, config


@pytest.fixture
def in_place(begun, tmp_path):
    """As a user has it: images and workdir; what was there before is put back afterwards."""
    root, config = begun
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)

    def files():
        run = root / "run"
        paths = (p for p in run.rglob("*") if p.is_file() and p.name != ".lock")
        return {p.relative_to(run): p.read_bytes() for p in paths}

    def start(**changes):
        return loop.train(config(**{"train_for": "4 steps"} | changes), str(root / "run"))

    yield root, start, files
    shutil.rmtree(root)
    shutil.copytree(kept, root)


def add(images):
    folder(images, ("dog",))


def remove(images):
    shutil.rmtree(images / "bee")


def rename(images):
    (images / "ant").rename(images / "wasp")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (add, "was trained on ant, bee, cat; now ant, bee, cat, dog"),
        (remove, "was trained on ant, bee, cat; now ant, cat"),
        (rename, "was trained on ant, bee, cat; now bee, cat, wasp"),
    ],
)
def test_a_class_directory_changed_between_two_starts(in_place, change, told):
    root, start, files = in_place
    before = files()
    change(root / "images")
    with pytest.raises(InputError, match=told):
        start()
    assert files() == before


def saved_run(tmp_path, make_config, names, num_examples=100):
    """A checkpoint's records, without a state: its directory."""
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


def test_of_a_thousand_classes_those_that_differ_are_named(tmp_path, make_config):
    names = [f"n{i:04}" for i in range(1000)]
    kept = saved_run(tmp_path, make_config, names)
    check_same_run(kept, make_config(), names, 100)
    more = sorted([*names[1:], "n2", "n3"])
    expected = "trained on 1,000 classes; now 1,001, new: n2, n3; gone: n0000"
    with pytest.raises(InputError, match=expected):
        check_same_run(kept, make_config(), more, 100)
    swapped = [names[1], names[0], *names[2:]]
    with pytest.raises(InputError, match="in another order: label 0 was n0000, is n0001"):
        check_same_run(kept, make_config(), swapped, 100)


def test_classes_in_another_form_of_unicode_are_the_same(tmp_path, make_config):
    apart, composed = (unicodedata.normalize(form, "Café") for form in ("NFD", "NFC"))
    assert apart != composed
    kept = saved_run(tmp_path, make_config, ("Bar", apart))
    check_same_run(kept, make_config(), ("Bar", composed), 100)


def test_an_image_added_between_two_starts_is_told(tmp_path, make_config, caplog):
    kept = saved_run(tmp_path, make_config, CLASSES)
    with caplog.at_level(logging.WARNING):
        check_same_run(kept, make_config(), CLASSES, 100)
        assert not caplog.records
        check_same_run(kept, make_config(), CLASSES, 101)
    assert "had 100 examples until step 5, has 101 now: from here on their order" in caplog.text


def test_a_run_of_an_earlier_version_goes_on(in_place, caplog):
    """Its checkpoints do not tell how many examples there were."""
    root, start, _ = in_place
    shutil.rmtree(root / "run" / "checkpoints" / "2" / "data")
    assert start().step == 4


def test_a_saved_value_that_is_out_of_range_today_is_no_damage(tmp_path, make_config):
    kept = saved_run(tmp_path, make_config, CLASSES)
    path = kept / "5" / "config" / "metadata"
    record = json.loads(path.read_text())
    record["optimizer"]["warmup_learning_rate"], record["optimizer"]["warmup"] = -1.0, "0 steps"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="trained on ant, bee, cat; now ant, bee"):
        check_same_run(kept, make_config(), ("ant", "bee"), 100)


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
def test_a_checkpoint_that_says_nonsense_of_its_run_is_left_to_restoring(
    item, record, tmp_path, make_config
):
    kept = saved_run(tmp_path, make_config, CLASSES)
    (kept / "5" / item / "metadata").write_text(json.dumps(record))
    check_same_run(kept, make_config(), ("other",), 7)


def test_a_card_of_another_version_still_tells_its_classes(tmp_path, make_config):
    kept = saved_run(tmp_path, make_config, CLASSES)
    path = kept / "5" / "card" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    with pytest.raises(InputError, match="trained on ant, bee, cat; now ant, bee"):
        check_same_run(kept, make_config(), ("ant", "bee"), 100)


def damaged(root):
    return [p.name for p in (root / "run" / "checkpoints").iterdir() if "damaged" in p.name]


def test_a_state_of_another_shape_is_a_sentence_and_no_damage(begun):
    """Where neither config nor classes tell: the code itself makes another model."""
    root, config = begun
    kept = saving.open_checkpoints(epath.Path(root / "run/checkpoints"), config().checkpoint)
    experiment = make_experiment(config(), num_examples=24, num_classes=4)
    abstract = experiment.abstract_state()
    everywhere = mesh.replicated(mesh.create_mesh())
    with pytest.raises(InputError, match=r"run's: params.head.bias \(\(3,\) there, \(4,\) here\)"):
        saving.restore_newest(kept, abstract, jax.tree.map(lambda _: everywhere, abstract))
    kept.close()
    assert damaged(root) == []


@pytest.fixture
def restoring_raises(monkeypatch):
    """A function of an error: restoring onto the run's devices raises it."""
    restore = ocp.StandardCheckpointHandler.restore

    def make(error):
        def broken(handler, directory, args):
            if isinstance(jax.tree.leaves(args.item)[0].sharding, jax.sharding.NamedSharding):
                raise error
            return restore(handler, directory, args=args)  # into memory

        monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", broken)

    return make


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
    in_place, fault, restoring_raises, monkeypatch
):
    root, start, files = in_place
    before = files()
    restoring_raises(fault)
    with pytest.raises(MachineError, match="the checkpoint of step 2: "):
        start()
    monkeypatch.undo()
    assert damaged(root) == []
    assert files() == before
    assert start().step == 4


def test_a_device_without_room_damages_no_checkpoint(in_place, restoring_raises):
    root, start, _ = in_place
    full = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"
    restoring_raises(jax.errors.JaxRuntimeError(full))
    with pytest.raises(RunError, match="does not fit the devices' memory"):
        start()
    assert damaged(root) == []


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("y"), AssertionError(), EOFError()])
def test_whatever_else_a_library_raises_over_sound_files_is_no_damage(
    in_place, error, restoring_raises, monkeypatch
):
    _, start, files = in_place
    before = files()
    restoring_raises(error)
    with pytest.raises(type(error)):
        start()
    monkeypatch.undo()
    assert files() == before
    assert start().step == 4


@pytest.mark.parametrize("metrics", ["", "[]", '{"accuracy": "x"}', "{}", "3"])
def test_metrics_of_no_use_lose_nothing(in_place, metrics):
    root, start, _ = in_place
    shutil.copytree(root / "run/checkpoints/2", root / "run/checkpoints/1")
    (root / "run/checkpoints/2/metrics/metrics").write_text(metrics)
    assert start().step == 4
    assert damaged(root) == ["2.metrics.damaged"]


@pytest.mark.parametrize(("depth", "gpsa"), [(12, 10), (12, 6), (12, 12), (14, 13), (3, 1)])
@pytest.mark.parametrize("row", ["f", "g"])
def test_the_gpsa_layers_that_there_are_freeze(row, depth, gpsa):
    """`ablation=f` (paper Table 3), with layers changed on the command line."""
    overrides, _ = split_overrides(
        [f"--config.model.depth={depth}", f"--config.model.gpsa_layers={gpsa}",
         "--config.model.num_heads=4", "--config.model.head_dim=4"]
    )  # fmt: skip
    config = config_of(f"configs/convit_s.py:ablation={row}", overrides)
    assert config.optimizer.frozen == (GPSA_ATTENTION,)
    params = make_experiment(config, num_examples=2000, num_classes=3).abstract_state().params
    marks = jax.tree.leaves(match_parameters(params, config.optimizer.frozen, "optimizer.frozen"))
    frozen = {n for n, mark in zip(parameter_names(params), marks, strict=True) if mark}
    attention = {n for n in parameter_names(params) if ".attention." in n}
    assert frozen == {n for n in attention if int(n.split(".")[1]) < gpsa}


def test_a_model_without_gpsa_layers_has_none_to_freeze():
    overrides, _ = split_overrides([f"--config.optimizer.frozen={GPSA_ATTENTION}"])
    config = config_of("configs/deit_s.py", overrides)
    with pytest.raises(InputError, match=r"'blocks.*{gpsa}.*' matches none of the"):
        make_experiment(config, num_examples=2000, num_classes=3)


@pytest.mark.parametrize("pattern", ["(", "x{99999999999999999999}", "[a-"])
def test_a_pattern_that_is_none(make_config, pattern):
    with pytest.raises(InputError, match="is no regular expression"):
        make_experiment(make_config(optimizer__frozen=(pattern,)), num_examples=99, num_classes=3)
