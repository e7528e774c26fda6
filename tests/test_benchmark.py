import json
import mmap
import os
import threading
from multiprocessing.shared_memory import SharedMemory
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from convit_jax import benchmark, kernels
from convit_jax.benchmarks import kernel as kernel_benchmark
from convit_jax.benchmarks import long_run
from convit_jax.benchmarks.attention import FORMS
from convit_jax.errors import InputError


def test_a_model_is_measured(capsys, tmp_path):
    arguments = ["--batch-size", "2", "--image-size", "32", "--seconds", "0", "--json"]
    arguments += ["--profile", str(tmp_path)]
    assert benchmark.main(["model", "convit_tiny", *arguments]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["model"] == "convit_tiny"
    # 192 fewer positions of 192 channels than at 224 pixels.
    assert measured["parameters"] == 5_710_512 - 192 * 192
    # Matrices of 2 M N operations a token: 4 tokens, 12 blocks of 12 width² each, and the ends.
    assert 0.04 < measured["gflops"] < 0.06
    for name in ("forward_images_per_second", "train_images_per_second"):
        assert measured[name] > 0
    assert list((tmp_path / "convit_tiny").rglob("*.xplane.pb"))


def test_a_profile_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError,
        match=r"^--profile=.*file cannot be used as a directory to write to: File exists",
    ):
        benchmark.main(["model", "convit_tiny", "--profile", str(tmp_path / "file")])


def test_no_number_is_cut_off_in_a_file(capsys):
    cells = ["convit_small", *(f"{number:,}" for number in range(27_777_322, 27_777_332))]
    benchmark._print_table("a title", cells, [cells])
    shown = capsys.readouterr().out.split("\n")
    assert sum(all(cell in line for cell in cells) for line in shown) == 2


def test_an_unknown_model_is_told_before_any_is_measured():
    with pytest.raises(InputError, match="did you mean 'deit_tiny'"):
        benchmark.main(["model", "convit_tiny", "deit_tin"])


def test_reading_is_measured(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / f"class_{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    arguments = ["--image-size", "32", "--batch-size", "12", "--seconds", "0.05", "--json"]
    assert benchmark.main(["input", "--data", f"folder:{tmp_path}", *arguments]) == 0
    *speeds, memory = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [speed["work"] for speed in speeds] == [
        "evaluation", "crop and flip", "full recipe", "full recipe, 3 views",
    ]  # fmt: skip
    assert all(speed["images_per_core_second"] > 0 for speed in speeds)
    assert all(speed["ratio"] is None for speed in speeds)
    # A worker imports OpenCV and NumPy, not JAX or TensorFlow.
    assert 30 < memory["worker_megabytes"] < 200


def test_a_senseless_size_is_told_in_a_sentence():
    with pytest.raises(InputError, match="--image-size=0: expected at least 1"):
        benchmark.main(["input", "--data", "digits:train", "--image-size", "0"])


def test_forms_of_attention_are_compared(capsys, monkeypatch):
    """The compiler takes minutes: here another answers for it."""
    asked = []

    def answer(config, topology, *, attention, **options):
        asked.append((config.model.gpsa_layers, config.batch_size, attention))
        return SimpleNamespace(cycles=1000 * len(asked), custom_cycles=10 * len(asked))

    monkeypatch.setattr(kernel_benchmark, "make_plan", answer)
    arguments = ["--batch-size", "2", "--image-size", "32", "--forms"]
    arguments += ["fused kernel", "plain attention, fused kernel", "no attention"]
    assert benchmark.main(["kernel", *arguments, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [cost["cycles"] for cost in found] == [1000, 2000, 3000]
    assert asked[:2] == [(None, 8, "pallas"), (0, 8, "pallas")]
    assert benchmark.main(["kernel", *arguments]) == 0
    assert "not measured" in capsys.readouterr().out


def test_a_layers_attention_is_timed_in_every_form_that_runs_here(capsys):
    arguments = ["attention", "--batch-size", "2", "--image-size", "32", "--seconds", "0"]
    assert benchmark.main([*arguments, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # The kernel is not timed where it would be interpreted, nor cuDNN where there is none.
    here = [name for name in FORMS if "kernel" not in name and "cuDNN" not in name]
    assert [time["form"] for time in found] == here
    assert all(time["forward_seconds"] > 0 and time["train_seconds"] > 0 for time in found)
    assert benchmark.main([*arguments, "--forms", "no attention"]) == 0
    assert "on TPUs only" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot be timed here; expected some of released formula"):
        benchmark.main([*arguments, "--forms", "fused kernel", "cuDNN"])


@pytest.mark.parametrize("name", ["released formula", "one product, as on TPUs"])
def test_compared_forms_compute_the_same(name):
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 6, 3 * 8)).astype(np.float32)
    positional = np.asarray(jax.nn.softmax(rng.normal(size=(2, 6, 6)))).astype(np.float32)
    gate, mesh = np.float32([0.2, 0.9]), jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    for extra in ((positional, gate), ()):
        expected = kernels.DEFAULT_ATTENTION((qkv,), 2, *extra, num_outputs=3)
        found = kernels.attention_for(mesh, FORMS[name][0])((qkv,), 2, *extra, num_outputs=3)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def samples_of(step_of=lambda i: 5 * i, count=1000, **figures):
    """Samples of a run of 5,000 steps that takes as much at every moment, but for `figures`."""
    constant = {
        "seconds": 0.0, "allocated": 230.0, "blocks": 10**6, "anonymous": 900.0, "rss": 1400.0,
        "pss": 1000.0, "shared": 0.05, "descriptors": 50, "threads": 240, "processes": 4,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    return [
        long_run.Sample(
            step=step_of(i),
            **constant
            | {"anonymous": 900 + rng.uniform(0, 3)}
            | {name: function(step_of(i)) for name, function in figures.items()},
        )
        for i in range(count)
    ]


def flat(samples):
    return {trend.figure: trend.flat for trend in long_run.trends(samples)}


def trend(name, samples):
    (found,) = [trend for trend in long_run.trends(samples) if trend.figure == name]
    return found


def test_what_a_run_keeps_shows_and_what_it_gives_back_does_not():
    # An evaluation takes a hundred megabytes for a fifth of the time.
    steady = samples_of(allocated=lambda step: 200 + 100 * (step % 250 < 50))
    assert set(flat(steady).values()) == {True, None}
    found = trend("allocated", steady)
    assert (found.floor, found.peak, found.slope, found.late) == (200, 300, 0, 0)
    leaking = samples_of(allocated=lambda step: 200 + 100 * (step % 250 < 50) + 2e-3 * step)
    found = trend("allocated", leaking)
    assert (found.slope, found.late) == pytest.approx((2, 2))
    assert found.flat is False
    # A piece of memory of every step, ten times; a descriptor and a thread of every evaluation.
    assert flat(samples_of(blocks=lambda step: 10**6 + 11 * step))["blocks"] is False
    for name in ("descriptors", "threads", "processes"):
        assert flat(samples_of(**{name: lambda step: 50 + step // 250}))[name] is False
    # What it takes until it has settled is nothing that it goes on taking, nor is a single jump.
    settling = trend("allocated", samples_of(allocated=lambda step: 0.1 * min(step, 1000)))
    assert (settling.slope, settling.flat) == (0, True)
    jump = trend("allocated", samples_of(allocated=lambda step: 5 * (step > 3100)))
    assert jump.slope > 1
    assert (jump.late, jump.flat) == (0, True)


def test_a_process_is_measured():
    def grown(before, after):
        return [(one - other) for one, other in zip(after, before, strict=True)]

    allocated = long_run.allocated_here()
    array = np.ones(10**7 // 8)
    assert long_run.allocated_here() - allocated == pytest.approx(array.nbytes / 1e6, abs=4)
    *before, segments = long_run._taken(os.getpid())
    files = [open(os.devnull) for _ in range(7)]  # noqa: PTH123, SIM115
    # What NumPy allocates may be memory that was free before.
    block = mmap.mmap(-1, 2 * 10**7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"1" * len(block))
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    memory = SharedMemory(create=True, size=4096)
    memory.buf[0] = 1
    try:
        *after, mapped = long_run._taken(os.getpid())
        assert grown(before[0], after[0]) == pytest.approx([len(block) / 1e6] * 3, abs=4)
        assert grown(before[1:], after[1:])[1] == 1
        assert grown(before[1:], after[1:])[0] >= len(files)
        assert long_run._size(mapped - segments) == 4096e-6
    finally:
        memory.close()
        memory.unlink()
        wait.set()
        thread.join()
        for file in files:
            file.close()


def test_a_run_is_sampled_with_its_workers(monkeypatch, capsys, tmp_path):
    """A short one, which evaluates twice; its trend is another test's."""
    monkeypatch.setattr(long_run, "SAMPLED_EVERY", 0.05)
    monkeypatch.setitem(long_run._VALUES, "log_every", "5 steps")
    monkeypatch.setitem(long_run._VALUES, "attention_images", 0)
    found = long_run.measure_long_run(40, batch_size=8, workers=1)
    assert {sample.step for sample in found} >= {0, 40}
    # The process, its worker, and the one that keeps count of shared memory.
    assert max(sample.processes for sample in found) >= 3
    assert max(sample.rss for sample in found) > 200
    assert found[-1].allocated > 50
    assert found[-1].blocks > 10**5
    monkeypatch.setattr(benchmark, "measure_long_run", lambda *arguments: samples_of())
    assert benchmark.main(["long-run", "--out", str(tmp_path), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert len((tmp_path / "long_run.jsonl").read_text().splitlines()) == 1000
    assert Image.open(tmp_path / "long_run.png").width > 1000
    assert benchmark.main(["long-run"]) == 0
    assert "growth in 1,000 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--steps=20", "1000 or more"),
        ("--workers=-1", "0 or more"),
        ("--batch-size=0", "at least 1"),
    ],
)
def test_a_senseless_long_run_is_told_in_a_sentence(flag, words):
    with pytest.raises(InputError, match=rf"{flag}: expected {words}"):
        benchmark.main(["long-run", flag])
