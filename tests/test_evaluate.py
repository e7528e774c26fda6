"""python -m convit_jax.evaluate, on small weights and datasets."""

import io
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
from convit_jax.console import command_line
from convit_jax.data.sources import imagenet
from convit_jax.weights import Card, Weights, new_path, to_torch, write_weights
from convit_jax.weights.torch_names import parameter_shapes


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


def save(architecture, path, seed=0):
    """Write random weights of an architecture to a file, and return its path."""
    rng = np.random.default_rng(seed)
    params = {
        name: rng.normal(0, 0.3, size=shape).astype(np.float32)
        for name, shape in parameter_shapes(architecture).items()
    }
    weights = Weights("random", to_torch(params, architecture), Card())
    write_weights(weights, new_path(str(path)), architecture)
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Weights of a small model with ImageNet's thousand classes."""
    architecture = models.architecture(
        "convit_tiny", image_size=64, depth=2, gpsa_layers=1, head_dim=8
    )
    return save(architecture, tmp_path_factory.mktemp("small") / "small.safetensors")


@pytest.fixture(scope="module")
def logits(small, photographs):
    """Logits of the small model on the photographs."""
    return np.asarray(
        convit_jax.load_model(small)(convit_jax.preprocess(photographs, image_size=64))
    )


def run_evaluate(capsys, *arguments):
    """Return the JSON output."""
    capsys.readouterr()  # discard earlier output
    assert evaluate.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def cross_entropy(logits, labels):
    logits = logits.astype(np.float64)
    log_total = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(log_total - logits[np.arange(len(labels)), labels]))


def test_workdir_has_the_accuracy_logged_by_its_run(workdir, capsys):
    """Two training steps on the digits; each of 397 examples counts once, in batches of 64."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [line for line in lines if "eval/accuracy" in line]
    result = run_evaluate(capsys, "--weights", str(workdir), "--data", "digits:test", "--per-class")
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


def test_imagenet_a_is_restricted_to_its_classes(prepare_variant, small, logits, capsys):
    classes = np.array([3, 50, 100, 200, 400, 800, 999])
    labels = np.random.default_rng(1).choice(classes, size=24)
    labels[:7] = classes
    data = prepare_variant("imagenet_a", "0.1.0", "test", [int(label) for label in labels])
    result = run_evaluate(capsys, "--weights", small, "--data", data)
    targets = np.searchsorted(classes, labels)
    subset_logits = logits[:, classes]
    order = np.argsort(-subset_logits, axis=1)
    assert result["examples"] == 24
    assert result["top1"] == pytest.approx(np.mean(order[:, 0] == targets))
    assert result["top5"] == pytest.approx(np.mean((order[:, :5] == targets[:, None]).any(axis=1)))
    assert 0 < result["top5"] < 1
    assert result["loss"] == pytest.approx(cross_entropy(subset_logits, targets), rel=1e-4)
    assert evaluate.main(["--weights", small, "--data", data]) == 0
    assert "restricted to 7 of the 1,000 classes" in capsys.readouterr().out
    # The same images as ImageNet's with all classes, and restricted, as in timm's "clean" rows.
    plain = prepare_variant("imagenet2012", "5.1.0", "validation", [int(label) for label in labels])
    assert run_evaluate(capsys, "--weights", small, "--data", plain)["loss"] > result["loss"]
    restricted = run_evaluate(capsys, "--weights", small, "--data", plain, "--classes-of", data)
    assert restricted["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_real_labels_any_label_is_correct_and_unlabelled_images_do_not_count(
    prepare_variant, small, logits, capsys
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
    result = run_evaluate(capsys, "--weights", small, "--data", data)
    assert result["examples"] == 18
    hits = [[bool(set(best[i, :k]) & set(real[i])) for i in range(24) if real[i]] for k in (1, 5)]
    assert (result["top1"], result["top5"]) == pytest.approx([np.mean(h) for h in hits])
    assert command_line.run(
        "evaluate",
        lambda: evaluate.main(["--weights", small, "--data", data, "--per-class"]),
    ) == 2  # fmt: skip
    assert "has several labels per image" in capsys.readouterr().err


def test_weights_with_published_shapes_are_compared(prepare_variant, tmp_path, capsys):
    weights = save(models.architecture("convit_tiny"), tmp_path / "convit_tiny.safetensors")
    data = prepare_variant("imagenet_sketch", "1.0.0", "test", [1, 2, 3])
    arguments = ["--weights", weights, "--data", data, "--batch-size", "3"]
    assert evaluate.main([*arguments, "--mask-position", "10"]) == 0
    assert "published for" not in capsys.readouterr().out
    assert evaluate.main(arguments) == 0
    output = capsys.readouterr().out
    assert "published for convit_tiny (timm's results table): top-1 22.27 % (here " in output


def test_masks_change_the_result(workdir, capsys):
    arguments = ("--weights", str(workdir), "--data", "digits:test")
    masks = ((), ("--mask-pos-embed",), ("--mask-content", "1"), ("--mask-position", "1"))
    losses = {run_evaluate(capsys, *arguments, *mask)["loss"] for mask in masks}
    assert len(losses) == 4


def test_confusion_matrix_is_written(workdir, tmp_path, capsys):
    path = tmp_path / "table.csv"
    result = run_evaluate(
        capsys, "--weights", str(workdir), "--data", "digits:test", "--confusion", str(path)
    )
    rows = [line.split(",") for line in path.read_text().splitlines()]
    table = np.array([row[1:] for row in rows[1:]], int)
    assert rows[0] == ["", *"0123456789"]
    assert table.sum() == 397
    assert np.trace(table) / 397 == pytest.approx(result["top1"], abs=1e-6)


def test_broken_images_do_not_count(small, tmp_path, photographs, capsys):
    for label, name in enumerate(imagenet.class_ids()[:2]):
        (tmp_path / name).mkdir()
        for i in range(5):
            file = io.BytesIO()
            Image.fromarray(photographs[5 * label + i]).save(file, "PNG")
            content = b"broken" if (label, i) == (1, 2) else file.getvalue()
            (tmp_path / name / f"{i}.png").write_bytes(content)
    arguments = ["--weights", small, "--data", f"folder:{tmp_path}"]
    assert run_evaluate(capsys, *arguments, "--max-broken", "0.2")["examples"] == 9
    assert command_line.run("evaluate", lambda: evaluate.main(arguments)) == 1
    assert "2.png" in capsys.readouterr().err


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
        (["--weights", "nowhere"], "no weights at nowhere: expected a file that ends in"),
    ],
)
def test_input_errors_are_one_sentence_and_code_2(workdir, arguments, message, capsys):
    arguments = ["--weights", str(workdir), "--data", "digits:test", *arguments]
    assert command_line.run("evaluate", lambda: evaluate.main(arguments)) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert message in last_line
    assert last_line.startswith("evaluate: ")


def test_two_processes_of_four_devices_agree_with_one(workdir, repository, capsys):
    expected = run_evaluate(capsys, "--weights", str(workdir), "--data", "digits:test")
    command = [
        sys.executable, "-m", "convit_jax.evaluate", f"--weights={workdir}", "--data=digits:test",
        "--json", "--batch-size=40",
    ]  # fmt: skip
    with free_port() as port:
        processes = [
            subprocess.Popen(
                command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ | {
                    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(index),
                },
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


def free_port():
    """Return a context with a port that was free a moment ago."""
    import contextlib
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return contextlib.nullcontext(probe.getsockname()[1])
