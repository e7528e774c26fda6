"""python -m convit_jax.evaluate, on small weights and datasets."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_image

import convit_jax
from convit_jax import evaluate, models
from convit_jax.data.sources import imagenet
from tests.field.builders import encode
from tests.helpers import read_metrics, write_random_weights
from tests.processes import free_port, process_variables, simulated_devices


@pytest.fixture(scope="module")
def photographs():
    """24 crops of two photographs."""
    rng = np.random.default_rng(0)
    crops = []
    for i in range(24):
        photograph = load_sample_image(("china.jpg", "flower.jpg")[i % 2])
        top, left = rng.integers(300), rng.integers(500)
        crops.append(photograph[top : top + 100, left : left + 120])
    return crops


@pytest.fixture(scope="module")
def prepare_variant(photographs, tmp_path_factory):
    """Return a function that prepares the photographs as an ImageNet variant of TFDS."""
    names = tfds.features.ClassLabel(names=imagenet.class_ids())

    def prepare(name, version, split, labels, **other_features):
        directory = str(tmp_path_factory.mktemp(name.replace("/", "-")))
        features = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
        features |= {key: kind for key, (kind, _) in other_features.items()} or {"label": names}
        columns = {key: values for key, (_, values) in other_features.items()} or {"label": labels}
        count = len(next(iter(columns.values())))
        examples = [
            (
                i,
                {"image": photographs[i], "file_name": f"{i:02d}"}
                | {key: values[i] for key, values in columns.items()},
            )
            for i in range(count)
        ]
        dataset, _, config = name.partition("/")
        builder = tfds.dataset_builders.AdhocBuilder(
            name=dataset, version=version, features=tfds.features.FeaturesDict(features),
            split_datasets={split: examples}, config=config or None, data_dir=directory,
            file_format="array_record",
        )  # fmt: skip
        builder.download_and_prepare()
        return f"tfds:{name}:{split}:{directory}"

    return prepare


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Weights of a small model with ImageNet's thousand classes."""
    architecture = models.architecture(
        "convit_tiny", image_size=64, depth=2, gpsa_layers=1, head_dim=8
    )
    return write_random_weights(
        architecture, tmp_path_factory.mktemp("small") / "small.safetensors"
    )


@pytest.fixture(scope="module")
def logits(small, photographs):
    """Logits of the small model on the photographs."""
    return np.asarray(
        convit_jax.load_model(small)(convit_jax.preprocess(photographs, image_size=64))
    )


@pytest.fixture
def run_evaluate(run_command):
    """A function of weights, data and flags: the JSON output."""

    def run(weights, data, *flags):
        code, output = run_command(evaluate, "--weights", weights, "--data", data, *flags, "--json")
        assert code == 0, output.err
        return json.loads(output.out)

    return run


def cross_entropy(logits, labels):
    logits = logits.astype(np.float64)
    log_total = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(log_total - logits[np.arange(len(labels)), labels]))


def test_workdir_has_the_accuracy_logged_by_its_run(workdir, run_evaluate):
    """Two training steps on the digits; each of 397 examples counts once, in batches of 64."""
    (logged,) = [line for line in read_metrics(workdir) if "eval/accuracy" in line]
    result = run_evaluate(workdir, "digits:test", "--per-class")
    assert result["examples"] == 397
    assert result["top1"] == pytest.approx(logged["eval/accuracy"], abs=1e-6)
    assert result["top5"] == pytest.approx(logged["eval/accuracy_top5"], abs=1e-6)
    assert result["loss"] == pytest.approx(logged["eval/loss"], rel=1e-4)
    rows = result["per_class"]
    assert [row["accuracy"] for row in rows] == sorted(row["accuracy"] for row in rows)
    hits = sum(row["examples"] * row["accuracy"] for row in rows)
    assert hits / 397 == pytest.approx(result["top1"], abs=1e-6)
    assert {row["class"] for row in rows} == set("0123456789")
    assert "published" not in result


def test_imagenet_a_is_restricted_to_its_classes(
    prepare_variant, small, logits, run_evaluate, run_command
):
    classes = np.array([3, 50, 100, 200, 400, 800, 999])
    labels = np.random.default_rng(1).choice(classes, size=24)
    labels[:7] = classes
    data = prepare_variant("imagenet_a", "0.1.0", "test", [int(label) for label in labels])
    result = run_evaluate(small, data)
    targets = np.searchsorted(classes, labels)
    subset_logits = logits[:, classes]
    order = np.argsort(-subset_logits, axis=1)
    assert result["examples"] == 24
    assert result["top1"] == pytest.approx(np.mean(order[:, 0] == targets))
    assert result["top5"] == pytest.approx(np.mean((order[:, :5] == targets[:, None]).any(axis=1)))
    assert 0 < result["top5"] < 1
    assert result["loss"] == pytest.approx(cross_entropy(subset_logits, targets), rel=1e-4)
    code, output = run_command(evaluate, "--weights", small, "--data", data)
    assert code == 0
    assert "restricted to 7 of the 1,000 classes" in output.out
    # The same images as ImageNet's with all classes, and restricted, as in timm's "clean" rows.
    plain = prepare_variant("imagenet2012", "5.1.0", "validation", [int(label) for label in labels])
    assert run_evaluate(small, plain)["loss"] > result["loss"]
    restricted = run_evaluate(small, plain, "--classes-of", data)
    assert restricted["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_real_labels_any_label_is_correct_and_unlabelled_images_do_not_count(
    prepare_variant, small, logits, run_evaluate, run_command
):
    best = np.argsort(-logits, axis=1)
    real = [
        [int(best[i, 0]), 7] if i % 4 == 0 else [int(best[i, 3])] if i % 4 == 1 else
        [5, 6, 7] if i % 4 == 2 else [] for i in range(24)
    ]  # fmt: skip
    label = tfds.features.ClassLabel(names=imagenet.class_ids())
    data = prepare_variant(
        "imagenet2012_real", "1.0.0", "validation", None,
        original_label=(label, [0] * 24), real_label=(tfds.features.Sequence(label), real),
    )  # fmt: skip
    result = run_evaluate(small, data)
    assert result["examples"] == 18
    hits = [[bool(set(best[i, :k]) & set(real[i])) for i in range(24) if real[i]] for k in (1, 5)]
    assert (result["top1"], result["top5"]) == pytest.approx([np.mean(h) for h in hits])
    code, output = run_command(evaluate, "--weights", small, "--data", data, "--per-class")
    assert code == 2
    assert "has several labels per image" in output.err


def test_weights_with_published_shapes_are_compared(prepare_variant, tmp_path, run_command):
    path = tmp_path / "convit_tiny.safetensors"
    weights = write_random_weights(models.architecture("convit_tiny"), path)
    data = prepare_variant("imagenet_sketch", "1.0.0", "test", [1, 2, 3])
    arguments = ["--weights", weights, "--data", data, "--batch-size", "3"]
    code, output = run_command(evaluate, *arguments, "--mask-position", "10")
    assert code == 0
    assert "published for" not in output.out
    code, output = run_command(evaluate, *arguments)
    assert code == 0
    assert "published for convit_tiny (timm's results table): top-1 22.27 % (here " in output.out


def test_masks_change_the_result(workdir, run_evaluate):
    masks = ((), ("--mask-pos-embed",), ("--mask-content", "1"), ("--mask-position", "1"))
    losses = {run_evaluate(workdir, "digits:test", *mask)["loss"] for mask in masks}
    assert len(losses) == 4


def test_confusion_matrix_is_written(workdir, tmp_path, run_evaluate):
    path = tmp_path / "table.csv"
    result = run_evaluate(workdir, "digits:test", "--confusion", path)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    table = np.array([row[1:] for row in rows[1:]], int)
    assert rows[0] == ["", *"0123456789"]
    assert table.sum() == 397
    assert np.trace(table) / 397 == pytest.approx(result["top1"], abs=1e-6)


def test_broken_images_do_not_count(small, tmp_path, photographs, run_evaluate, run_command):
    for label, name in enumerate(imagenet.class_ids()[:2]):
        (tmp_path / name).mkdir()
        for i in range(5):
            content = encode(Image.fromarray(photographs[5 * label + i]), "PNG")
            content = b"broken" if (label, i) == (1, 2) else content
            (tmp_path / name / f"{i}.png").write_bytes(content)
    data = f"folder:{tmp_path}"
    assert run_evaluate(small, data, "--max-broken", "0.2")["examples"] == 9
    code, output = run_command(evaluate, "--weights", small, "--data", data)
    assert code == 1
    assert "2.png" in output.err


def test_features_are_evaluated_without_the_head(workdir, run_evaluate, run_command):
    """The model has two training steps behind it; digits are told apart by nearly any features."""
    result = run_evaluate(workdir, "digits:test", "--knn", "digits:train")
    assert (result["train_examples"], result["examples"], result["neighbours"]) == (1400, 397, 20)
    assert result["knn_top1"] > 0.5  # chance is 0.1
    assert result["linear_top1"] > 0.5
    arguments = ("--weights", workdir, "--data", "digits:test", "--knn", "digits:train")
    code, output = run_command(evaluate, *arguments)
    assert code == 0
    assert f"nearest neighbours {100 * result['knn_top1']:.2f} %, linear probe" in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask-contnet", "3"], "no flag --mask-contnet: did you mean '--mask-content'?"),
        (["--mask-content", "2"], "cannot mask 2 GPSA layers"),
        (["--mask-content", "1", "--mask-position", "1"], "not allowed with argument"),
        (["--batch-size", "0"], "--batch-size=0: expected at least 1"),
        (["--crop", "1.5"], "--crop=1.5: expected above 0, up to 1"),
        (["--override", "dtpye=bfloat16"], "did you mean 'dtype'?"),
        (["--override", "depth=two"], "--override depth=two: expected int"),
        (["--data", "digits:tset"], "no split 'tset', did you mean 'test'?"),
        (["--knn", "digits:tset"], "no split 'tset', did you mean 'test'?"),
        (["--knn", "digits:train", "--per-class"], "--per-class is about the head, and --knn"),
        (["--weights", "nowhere"], "no weights at nowhere: expected a file that ends in"),
    ],
)
def test_input_errors_are_one_sentence_and_code_2(workdir, arguments, message, run_command):
    defaults = ("--weights", workdir, "--data", "digits:test")
    code, output = run_command(evaluate, *defaults, *arguments)
    assert code == 2
    last_line = output.err.splitlines()[-1]
    assert message in last_line
    assert last_line.startswith("evaluate: ")


def test_two_processes_of_four_devices_agree_with_one(workdir, repository, run_evaluate):
    expected = run_evaluate(workdir, "digits:test")
    command = [
        sys.executable, "-m", "convit_jax.evaluate", f"--weights={workdir}", "--data=digits:test",
        "--json", "--batch-size=40",
    ]  # fmt: skip
    port = free_port()
    processes = [
        subprocess.Popen(
            command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | simulated_devices(4) | process_variables(index, 2, port),
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    result = json.loads(outputs[0][0].splitlines()[-1])
    assert result["examples"] == 397
    assert result["top1"] == expected["top1"]
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert "{" not in outputs[1][0]  # only the first process prints the result
