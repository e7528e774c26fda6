"""Distillation: the losses by NumPy, the step, the evaluation, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from convit_jax.errors import InputError
from convit_jax.evaluation.sums import means
from convit_jax.models import build
from convit_jax.training import loop, make_experiment
from convit_jax.training.distillation import (
    Distillation,
    distilled_loss,
    open_config_teacher,
    teacher_loss,
)
from convit_jax.training.integrity import read_checksums
from convit_jax.training.losses import Loss, mean_loss
from convit_jax.training.placement import abstract_teacher
from convit_jax.training.step import augment, split_step_key, step_key, with_draws
from convit_jax.weights import load_model
from convit_jax.weights.exporting import export_logits
from tests.helpers import read_metrics
from tests.processes import simulated_devices

RNG = np.random.default_rng(0)
LOGITS, OF_TEACHER, OF_TOKEN = RNG.normal(0, 3, (3, 4, 5))
LABELS = np.eye(5)[[0, 3, 1, 2]] * 0.9 + 0.02


def softmax(values):
    exponentials = np.exp(values)
    return exponentials / exponentials.sum(-1, keepdims=True)


def make_batch(size=16, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


def test_the_hard_loss_is_the_cross_entropy_with_the_teachers_class():
    predicted = OF_TEACHER.argmax(-1)
    expected = -np.log(softmax(LOGITS)[np.arange(4), predicted]).mean()
    assert float(teacher_loss(LOGITS, OF_TEACHER, None)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_soft_loss_is_the_divergence_from_the_teachers_probabilities(temperature):
    p, q = softmax(OF_TEACHER / temperature), softmax(LOGITS / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    ours = teacher_loss(LOGITS, OF_TEACHER, temperature)
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    assert float(teacher_loss(OF_TEACHER, OF_TEACHER, temperature)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", [Loss("softmax", None, (1, 2, 3, 4, 5)), Loss("binary", 0.2)])
@pytest.mark.parametrize("logits", [[LOGITS], [LOGITS, OF_TOKEN]])
def test_the_labels_teach_the_class_token_and_the_teacher_the_last(loss, logits):
    ours = distilled_loss(logits, LABELS, OF_TEACHER, loss, Distillation(0.3))
    base, of_teacher = mean_loss(LOGITS, LABELS, loss), teacher_loss(logits[-1], OF_TEACHER, None)
    assert float(ours) == pytest.approx(0.7 * float(base) + 0.3 * float(of_teacher), rel=1e-6)


@pytest.fixture(scope="module")
def teach(make_config, workdir):
    """A function that takes one step with a teacher: the experiment, its new state and metrics.

    Without a batch it returns the experiment and the student's parameters.
    """

    def run(batch, **overrides):
        distill = {"teacher": str(workdir), "kind": "soft"}
        config = make_config(seed=3, distill=distill, model__drop_path_rate=0.0, **overrides)
        teacher = open_config_teacher(config, 10)
        # After two steps of training it hardly distinguishes images; a larger head does.
        kernel = teacher.params["head"]["kernel"]
        params = teacher.params | {"head": {"kernel": 30 * kernel, "bias": 0 * kernel[0]}}
        teacher = dataclasses.replace(teacher, params=params)
        experiment = make_experiment(config, num_examples=100, num_classes=10, teacher=teacher)
        before = jax.jit(experiment.init_state)()
        if batch is None:
            return experiment, before.params
        return experiment, *jax.jit(experiment.train_step)(before, batch, teacher.params)

    return run


def expected_loss(experiment, batch, heads):
    """The loss of the first step by its definition, from the augmented images."""
    config = experiment.step_config
    _, *keys = split_step_key(step_key(config.seed, 0))
    images, labels = jax.jit(lambda b: augment(with_draws(b, config, *keys), config))(batch)
    teacher, config = experiment.teacher, experiment.config
    of_teacher = jax.jit(teacher.predict)(teacher.params, images)
    student = jax.jit(lambda x: build(experiment.architecture, config.seed).separate_logits(x))
    logits = student(images)
    assert len(logits) == heads
    base = optax.softmax_cross_entropy(logits[0], labels).mean()
    return float(base + teacher_loss(logits[-1], of_teacher, 3.0)) / 2


IN_PARTS = {"optimizer__accumulate": 2, "model__remat": True}


@pytest.mark.parametrize(
    ("heads", "overrides"), [(1, {}), (2, IN_PARTS | {"model__distillation_token": True})]
)
def test_the_teacher_sees_the_batch_of_the_student(teach, heads, overrides):
    """Mixed and erased; also if the step computes the batch in parts."""
    batch, augmentation = make_batch(), {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5}
    experiment, _, metrics = teach(batch, augment=augmentation, **overrides)
    expected = expected_loss(experiment, batch, heads)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_state_is_that_of_a_run_without_a_teacher(teach, make_config):
    experiment = teach(None)[0]
    alone = make_experiment(make_config(), num_examples=100, num_classes=10)
    assert experiment.abstract_state() == alone.abstract_state()
    with pytest.raises(AssertionError):
        abstract_teacher(dataclasses.replace(experiment, teacher=None))


def test_the_evaluation_counts_equal_predictions(teach):
    experiment, params = teach(None)
    batch = make_batch(24, seed=1) | {"mask": np.r_[np.ones(20), np.zeros(4)].astype(np.float32)}
    images = (np.float32(batch["image"]) / 255 - 0.3) / 0.4
    student = jax.jit(nnx.merge(experiment.graph, nnx.State(params)))(images).argmax(-1)
    # A teacher that is given its predictions: those of the student, except for 13 rows of mask 1.
    other = dataclasses.replace(experiment.teacher, predict=lambda logits, images: logits)
    config = experiment.config
    experiment = make_experiment(config, num_examples=100, num_classes=10, teacher=other)
    of_teacher = jax.nn.one_hot((student + (np.arange(24) % 20 >= 7)) % 10, 10)
    sums = jax.jit(experiment.eval_step)(params, batch, of_teacher)
    assert float(sums["agreement"]) == 7
    assert means(jax.device_get(sums))["agreement"] == pytest.approx(7 / 20)


def test_classes_that_differ_are_refused(make_config, workdir):
    config = make_config(distill={"teacher": str(workdir)})
    with pytest.raises(InputError, match=r"config.distill.teacher: .* has 10 classes, the data 7"):
        open_config_teacher(config, 7)
    names = tuple("abcdefghij")
    with pytest.raises(InputError, match=r"was trained on 0, 1, .*; now a, b, .*same order"):
        open_config_teacher(config, 10, names)
    assert open_config_teacher(config, 10, tuple("0123456789")).class_names is not None


def test_a_resumed_run_ends_with_the_same_bits(make_config, workdir, tmp_path, package_log):
    package_log.set_level("INFO")
    distill = {"teacher": str(workdir), "kind": "soft"}
    config = make_config(train_for="4 steps", distill=distill, checkpoint__every="2 steps")
    loop.train(config, str(tmp_path))
    assert f"soft distillation from {workdir} into the class token" in package_log.text
    assert any("eval/agreement" in record for record in read_metrics(tmp_path))
    last = tmp_path / "checkpoints" / "4"
    expected = read_checksums(last)
    shutil.rmtree(last)
    assert loop.train(config, str(tmp_path)).step == 4
    assert "resuming after step 2" in package_log.text
    assert read_checksums(last) == expected
    shutil.rmtree(last)
    # Weights that a run reads only when it starts may change; a teacher is read at every start.
    data = tmp_path / "checkpoints" / "2" / "data" / "metadata"
    record = json.loads(data.read_text())
    assert len(record["teacher"]) == 64
    data.write_text(json.dumps(record | {"teacher": "0" * 64}))
    with pytest.raises(InputError, match=r"started with another teacher: config\.distill"):
        loop.train(config, str(tmp_path))


DEVICES = """
import json, sys
import jax, numpy as np
from convit_jax.config import resolve
from convit_jax.distributed import mesh as meshes
from convit_jax.training import make_experiment
from convit_jax.training.distillation import open_config_teacher
from convit_jax.training.placement import place, place_teacher

values, weights, program = map(json.loads, sys.argv[1:])
one, eight, losses = jax.devices()[:1], jax.devices(), []
for teacher, devices, fsdp in ((weights, one, 1), (weights, eight, 2), (program, eight, 1)):
    config, mesh = resolve(values | {"distill": teacher}), meshes.create_mesh(fsdp, devices)
    teacher = open_config_teacher(config, 10, mesh=mesh)
    experiment = make_experiment(
        config, num_examples=100, num_classes=10, mesh=mesh, teacher=teacher)
    placement = place(experiment, mesh)
    state = jax.jit(experiment.init_state, out_shardings=placement.state)()
    (params,) = place_teacher(experiment, placement)
    if params:
        hidden = params["blocks"][0]["mlp"]["fc1"]["kernel"]
        assert hidden.addressable_shards[0].data.size * fsdp == hidden.size
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8),
             "label": rng.integers(0, 10, 16).astype(np.int32)}
    batch = meshes.to_global(batch, placement.rows, 16)
    step = placement.train_step.lower(state, batch, params).compile()
    losses.append(float(step(state, batch, params)[1]["loss"]))
    # A device computes the teacher's logits of its own images.
    assert fsdp > 1 or "all-gather" not in step.as_text()
print(json.dumps(losses))
"""


def test_eight_devices_give_the_loss_of_one(make_config, workdir, run_python, tmp_path):
    """Weights are sharded like the student's parameters; a program's are on every device."""
    program = tmp_path / "teacher.stablehlo"
    program.write_bytes(export_logits(load_model(workdir)))
    teachers = ({"teacher": str(path), "kind": "soft"} for path in (workdir, program))
    values = (dataclasses.asdict(make_config(seed=3)), *teachers)
    result = run_python("-c", DEVICES, *map(json.dumps, values), **simulated_devices(8))
    assert result.returncode == 0, result.stderr
    one, *eight = json.loads(result.stdout)
    assert eight == pytest.approx([one, one], rel=1e-5)
