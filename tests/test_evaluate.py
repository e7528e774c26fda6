"""python -m convit_jax.evaluate, on the weights and data that it is for, only smaller."""

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
from convit_jax import evaluate
from convit_jax.console import command_line
from convit_jax.data.sources import imagenet
from convit_jax.models import architecture
from convit_jax.weights import Card, Weights, new_path, to_torch, write_weights
from convit_jax.weights.torch_names import parameter_shapes


@pytest.fixture(scope="module")
def photographs():
    """24 parts of two photographs."""
    rng = np.random.default_rng(0)
    parts = []
    for number in range(24):
        photograph = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
        top, left = rng.integers(300), rng.integers(500)
        parts.append(photograph[top : top + 100, left : left + 120])
    return parts


@pytest.fixture(scope="module")
def variant(photographs, tmp_path_factory):
    """A function: images prepared as TFDS has an ImageNet variant."""
    names = tfds.features.ClassLabel(names=imagenet.class_ids())

    def prepare(name, version, split, labels, **more):
        directory = str(tmp_path_factory.mktemp(name.replace("/", "-")))
        features = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
        features |= {key: kind for key, (kind, _) in more.items()} or {"label": names}
        columns = {key: values for key, (_, values) in more.items()} or {"label": labels}
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


def save(made, path, seed=0):
    """Random weights of an architecture, written to a file."""
    rng = np.random.default_rng(seed)
    params = {
        name: rng.normal(0, 0.3, size=shape).astype(np.float32)
        for name, shape in parameter_shapes(made).items()
    }
    write_weights(Weights("random", to_torch(params, made), Card()), new_path(str(path)), made)
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model of ImageNet's thousand classes."""
    made = architecture("convit_tiny", image_size=64, depth=2, gpsa_layers=1, head_dim=8)
    return save(made, tmp_path_factory.mktemp("small") / "small.safetensors")


@pytest.fixture(scope="module")
def logits(small, photographs):
    """What the small model says of the photographs."""
    return np.asarray(
        convit_jax.load_model(small)(convit_jax.preprocess(photographs, image_size=64))
    )


def evaluated(capsys, *arguments):
    capsys.readouterr()  # what came before
    assert evaluate.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def cross_entropy(logits, labels):
    logits = logits.astype(np.float64)
    log_total = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(log_total - logits[np.arange(len(labels)), labels]))


def test_a_workdir_scores_what_its_run_said(workdir, capsys):
    """Two steps of training on the digits; every one of 397 examples once, in batches of 64."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (said,) = [line for line in lines if "eval/accuracy" in line]
    found = evaluated(capsys, "--weights", str(workdir), "--data", "digits:test", "--per-class")
    assert found["examples"] == 397
    assert found["top1"] == pytest.approx(said["eval/accuracy"], abs=1e-6)
    assert found["top5"] == pytest.approx(said["eval/accuracy_top5"], abs=1e-6)
    assert found["loss"] == pytest.approx(said["eval/loss"], rel=1e-4)
    rows = found["per_class"]
    assert [row["accuracy"] for row in rows] == sorted(row["accuracy"] for row in rows)
    hits = sum(row["examples"] * row["accuracy"] for row in rows)
    assert hits / 397 == pytest.approx(found["top1"], abs=1e-6)
    assert {row["class"] for row in rows} == set("0123456789")
    assert "published" not in found


def test_of_imagenet_a_only_its_own_classes_are_told_apart(variant, small, logits, capsys):
    classes = np.array([3, 50, 100, 200, 400, 800, 999])
    labels = np.random.default_rng(1).choice(classes, size=24)
    labels[:7] = classes
    data = variant("imagenet_a", "0.1.0", "test", [int(label) for label in labels])
    found = evaluated(capsys, "--weights", small, "--data", data)
    places = np.searchsorted(classes, labels)
    among = logits[:, classes]
    order = np.argsort(-among, axis=1)
    assert found["examples"] == 24
    assert found["top1"] == pytest.approx(np.mean(order[:, 0] == places))
    assert found["top5"] == pytest.approx(np.mean((order[:, :5] == places[:, None]).any(axis=1)))
    assert 0 < found["top5"] < 1
    assert found["loss"] == pytest.approx(cross_entropy(among, places), rel=1e-4)
    # The same images as plain ImageNet's, all classes told apart, and as its "clean" row.
    plain = variant("imagenet2012", "5.1.0", "validation", [int(label) for label in labels])
    assert evaluated(capsys, "--weights", small, "--data", plain)["loss"] > found["loss"]
    again = evaluated(capsys, "--weights", small, "--data", plain, "--classes-of", data)
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_of_real_a_hit_is_any_label_and_images_without_one_do_not_count(
    variant, small, logits, capsys
):
    best = np.argsort(-logits, axis=1)
    real = [
        [int(best[i, 0]), 7] if i % 4 == 0 else [int(best[i, 3])] if i % 4 == 1 else
        [5, 6, 7] if i % 4 == 2 else [] for i in range(24)
    ]  # fmt: skip
    label = tfds.features.ClassLabel(names=imagenet.class_ids())
    data = variant(
        "imagenet2012_real", "1.0.0", "validation", None,
        original_label=(label, [0] * 24), real_label=(tfds.features.Sequence(label), real),
    )  # fmt: skip
    found = evaluated(capsys, "--weights", small, "--data", data)
    assert found["examples"] == 18
    hits = [[bool(set(best[i, :k]) & set(real[i])) for i in range(24) if real[i]] for k in (1, 5)]
    assert (found["top1"], found["top5"]) == pytest.approx([np.mean(h) for h in hits])
    assert command_line.run(
        "evaluate",
        lambda: evaluate.main(["--weights", small, "--data", data, "--per-class"]),
    ) == 2  # fmt: skip
    assert "has several labels per image" in capsys.readouterr().err


def test_weights_of_a_published_shape_are_compared(variant, tmp_path, capsys):
    weights = save(architecture("convit_tiny"), tmp_path / "convit_tiny.safetensors")
    data = variant("imagenet_sketch", "1.0.0", "test", [1, 2, 3])
    arguments = ["--weights", weights, "--data", data, "--batch-size", "3"]
    assert evaluate.main([*arguments, "--mask-position", "10"]) == 0
    assert "published for" not in capsys.readouterr().out
    assert evaluate.main(arguments) == 0
    told = capsys.readouterr().out
    assert "published for convit_tiny (timm's results table): top-1 22.27 % (here " in told


def test_masks_change_what_is_measured(workdir, capsys):
    arguments = ("--weights", str(workdir), "--data", "digits:test")
    masks = ((), ("--mask-pos-embed",), ("--mask-content", "1"), ("--mask-position", "1"))
    losses = {evaluated(capsys, *arguments, *mask)["loss"] for mask in masks}
    assert len(losses) == 4


def test_the_table_of_confusion_is_written(workdir, tmp_path, capsys):
    path = tmp_path / "table.csv"
    found = evaluated(
        capsys, "--weights", str(workdir), "--data", "digits:test", "--confusion", str(path)
    )
    rows = [line.split(",") for line in path.read_text().splitlines()]
    table = np.array([row[1:] for row in rows[1:]], int)
    assert rows[0] == ["", *"0123456789"]
    assert table.sum() == 397
    assert np.trace(table) / 397 == pytest.approx(found["top1"], abs=1e-6)


def test_broken_images_do_not_count(small, tmp_path, photographs, capsys):
    for label, name in enumerate(imagenet.class_ids()[:2]):
        (tmp_path / name).mkdir()
        for number in range(5):
            file = io.BytesIO()
            Image.fromarray(photographs[5 * label + number]).save(file, "PNG")
            content = b"broken" if (label, number) == (1, 2) else file.getvalue()
            (tmp_path / name / f"{number}.png").write_bytes(content)
    arguments = ["--weights", small, "--data", f"folder:{tmp_path}"]
    assert evaluated(capsys, *arguments, "--max-broken", "0.2")["examples"] == 9
    assert command_line.run("evaluate", lambda: evaluate.main(arguments)) == 1
    assert "2.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
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
def test_a_mistake_is_one_sentence_and_code_2(workdir, arguments, told, capsys):
    given = ["--weights", str(workdir), "--data", "digits:test", *arguments]
    assert command_line.run("evaluate", lambda: evaluate.main(given)) == 2
    said = capsys.readouterr().err.splitlines()
    assert told in said[-1]
    assert said[-1].startswith("evaluate: ")


def test_two_processes_of_four_devices_score_what_one_does(workdir, repository, capsys):
    expected = evaluated(capsys, "--weights", str(workdir), "--data", "digits:test")
    command = [
        sys.executable, "-m", "convit_jax.evaluate", f"--weights={workdir}", "--data=digits:test",
        "--json", "--batch-size=40",
    ]  # fmt: skip
    with socket_port() as port:
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
    found = json.loads(outputs[0][0].splitlines()[-1])
    assert found["examples"] == 397
    assert found["top1"] == expected["top1"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert "{" not in outputs[1][0]  # the first process alone tells


def socket_port():
    """A context with a port that was free a moment ago."""
    import contextlib
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return contextlib.nullcontext(probe.getsockname()[1])
