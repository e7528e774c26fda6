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
from convit_jax.benchmarks.model import ModelSpeed
from convit_jax.errors import InputError


def test_model_speed_is_measured(capsys, tmp_path):
    arguments = ["--batch-size", "2", "--image-size", "32", "--seconds", "0", "--json"]
    arguments += ["--profile", str(tmp_path)]
    assert benchmark.main(["model", "convit_tiny", *arguments]) == 0
    speed = json.loads(capsys.readouterr().out)
    assert speed["model"] == "convit_tiny"
    # 192 fewer positions of 192 channels than at 224 pixels.
    assert speed["parameters"] == 5_710_512 - 192 * 192
    # 2 M N operations per matrix and token: 4 tokens, 12 blocks of 12 width² each, first and last
    # layer.
    assert 0.04 < speed["gflops"] < 0.06
    for name in ("forward_images_per_second", "train_images_per_second", "product_gflops"):
        assert speed[name] > 0
    assert list((tmp_path / "convit_tiny").rglob("*.xplane.pb"))


def test_onnx_runtime_is_compared_where_it_is_installed(monkeypatch, capsys):
    speed = ModelSpeed("convit_tiny", 10, 1, 1.0, 0.0, 30.0, 0.0, 10.0, product_gflops=120.0)
    monkeypatch.setattr(benchmark, "check_timm", lambda names: None)
    monkeypatch.setattr(benchmark, "measure_model", lambda name: speed)
    monkeypatch.setattr(benchmark, "measure_timm", lambda name, compiled: (20.0, 5.0))
    monkeypatch.setattr(benchmark, "measure_onnx", lambda name: 25.0)
    for missing in ([], ["onnxruntime"]):
        monkeypatch.setattr(benchmark, "missing_for_onnx", lambda missing=missing: missing)
        benchmark.main(["model", "convit_tiny", "--against-timm"])
        output = capsys.readouterr().out
        assert ("forward to ONNX Runtime" in output) == (not missing)
        assert ("1.20" in output.split()) == (not missing)
        # 30 forward passes of 1 GFLOP a second, 10 train steps of 3, on a device of 120 GFLOP/s.
        assert [cell for cell in output.split() if cell == "0.25"] == ["0.25"] * 2
        assert ("ONNX Runtime is not compared without onnxruntime." in output) == bool(missing)


def test_an_unwritable_profile_directory_is_reported_before_measuring(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError,
        match=r"^--profile=.*file cannot be used as a directory to write to: File exists",
    ):
        benchmark.main(["model", "convit_tiny", "--profile", str(tmp_path / "file")])


def test_tables_in_files_show_every_number_in_full(capsys):
    cells = ["convit_small", *(f"{number:,}" for number in range(27_777_322, 27_777_332))]
    arguments = SimpleNamespace(json=False)
    benchmark._show(arguments, [cells], "a title", cells, lambda cells: cells)
    lines = capsys.readouterr().out.split("\n")
    assert sum(all(cell in line for cell in cells) for line in lines) == 2


def test_an_unknown_model_is_reported_before_measuring():
    with pytest.raises(InputError, match="did you mean 'deit_tiny'"):
        benchmark.main(["model", "convit_tiny", "deit_tin"])


def test_input_speed_is_measured(capsys, tmp_path):
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
        "reading and decoding alone",
    ]  # fmt: skip
    shares = [speed["decodings_per_view"] for speed in speeds]
    assert shares == [1.0, 1.0, 1.0, 0.5, None]
    assert all(speed["images_per_core_second"] > 0 for speed in speeds)
    assert all(speed["ratio"] is None for speed in speeds)
    # A worker imports OpenCV and NumPy, not JAX or TensorFlow.
    assert 30 < memory["worker_megabytes"] < 200


def test_an_image_size_of_0_is_an_input_error():
    with pytest.raises(InputError, match="--image-size=0: expected at least 1"):
        benchmark.main(["input", "--data", "digits:train", "--image-size", "0"])


def test_cost_of_each_form_of_attention_is_reported(capsys, monkeypatch):
    """With a fake in place of the compiler, which takes minutes."""
    calls = []

    def fake_plan(config, topology, *, attention, **options):
        calls.append((config.model.gpsa_layers, config.batch_size, attention))
        return SimpleNamespace(cycles=1000 * len(calls), custom_cycles=10 * len(calls))

    monkeypatch.setattr(kernel_benchmark, "make_plan", fake_plan)
    arguments = ["--batch-size", "2", "--image-size", "32", "--forms"]
    arguments += ["fused kernel", "plain attention, fused kernel", "no attention"]
    assert benchmark.main(["kernel", *arguments, "--json"]) == 0
    costs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [cost["cycles"] for cost in costs] == [1000, 2000, 3000]
    assert calls[:2] == [(None, 8, "pallas"), (0, 8, "pallas")]
    assert benchmark.main(["kernel", *arguments]) == 0
    assert "not measured" in capsys.readouterr().out


def test_an_attention_layer_is_timed_in_every_form_that_runs_on_this_platform(capsys):
    arguments = ["attention", "--batch-size", "2", "--image-size", "32", "--seconds", "0"]
    assert benchmark.main([*arguments, "--json"]) == 0
    times = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # On CPUs the kernel would be interpreted, and cuDNN does not exist.
    runnable = [name for name in FORMS if "kernel" not in name and "cuDNN" not in name]
    assert [time["form"] for time in times] == runnable
    assert all(time["forward_seconds"] > 0 and time["train_seconds"] > 0 for time in times)
    assert benchmark.main([*arguments, "--forms", "no attention"]) == 0
    assert "on TPUs only" in capsys.readouterr().out
    with pytest.raises(
        InputError,
        match=r"cannot be timed on this platform \(cpu\); expected some of released formula",
    ):
        benchmark.main([*arguments, "--forms", "fused kernel", "cuDNN"])


@pytest.mark.parametrize("name", ["released formula", "one product, as on TPUs"])
def test_forms_of_the_comparison_compute_the_same(name):
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 6, 3 * 8)).astype(np.float32)
    positional = np.asarray(jax.nn.softmax(rng.normal(size=(2, 6, 6)))).astype(np.float32)
    gate, mesh = np.float32([0.2, 0.9]), jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    for extra in ((positional, gate), ()):
        expected = kernels.DEFAULT_ATTENTION((qkv,), 2, *extra, num_outputs=3)
        actual = kernels.attention_for(mesh, FORMS[name][0])((qkv,), 2, *extra, num_outputs=3)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def make_samples(**figures):
    """Return samples of a run of 5,000 steps with constant figures, except functions of the step.

    `anonymous` fluctuates.
    """
    constants = {
        "seconds": 0.0, "allocated": 230.0, "blocks": 10**6, "anonymous": 900.0, "rss": 1400.0,
        "pss": 1000.0, "shared": 0.05, "descriptors": 50, "threads": 240, "processes": 4,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    return [
        long_run.Sample(
            step=step,
            **constants
            | {"anonymous": 900 + rng.uniform(0, 3)}
            | {name: function(step) for name, function in figures.items()},
        )
        for step in range(0, 5000, 5)
    ]


def trends_by_figure(**figures):
    return {trend.figure: trend for trend in long_run.compute_trends(make_samples(**figures))}


def test_leaks_show_in_the_trends_and_freed_memory_does_not():
    # An evaluation allocates a hundred megabytes for a fifth of the time.
    steady = trends_by_figure(allocated=lambda step: 200 + 100 * (step % 250 < 50))
    assert {trend.flat for trend in steady.values()} == {True, None}
    trend = steady["allocated"]
    assert (trend.floor, trend.peak, trend.slope, trend.late) == (200, 300, 0, 0)
    trend = trends_by_figure(allocated=lambda step: 200 + 100 * (step % 250 < 50) + 2e-3 * step)[
        "allocated"
    ]
    assert (trend.slope, trend.late) == pytest.approx((2, 2))
    assert trend.flat is False
    # Eleven memory blocks per step; a descriptor, thread or process per evaluation.
    assert trends_by_figure(blocks=lambda step: 10**6 + 11 * step)["blocks"].flat is False
    for name in ("descriptors", "threads", "processes"):
        assert trends_by_figure(**{name: lambda step: 50 + step // 250})[name].flat is False
    # Growth during the warm-up does not count, and neither does a single jump.
    warmup = trends_by_figure(allocated=lambda step: 0.1 * min(step, 1000))["allocated"]
    assert (warmup.slope, warmup.flat) == (0, True)
    jump = trends_by_figure(allocated=lambda step: 5 * (step > 3100))["allocated"]
    assert jump.slope > 1
    assert (jump.late, jump.flat) == (0, True)


def test_resources_of_a_process_are_read():
    allocated = long_run.allocated_megabytes()
    array = np.ones(10**7 // 8)
    assert long_run.allocated_megabytes() - allocated == pytest.approx(array.nbytes / 1e6, abs=4)
    before = long_run._process_usage(os.getpid())
    files = [open(os.devnull) for _ in range(7)]  # noqa: PTH123, SIM115
    # mmap, because NumPy may reuse memory that was freed before.
    block = mmap.mmap(-1, 2 * 10**7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"1" * len(block))
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    memory = SharedMemory(create=True, size=4096)
    memory.buf[0] = 1
    try:
        after = long_run._process_usage(os.getpid())
        for name in ("rss", "pss", "anonymous"):
            growth = getattr(after, name) - getattr(before, name)
            assert growth == pytest.approx(len(block) / 1e6, abs=4)
        assert after.threads - before.threads == 1
        assert after.descriptors - before.descriptors >= len(files)
        assert long_run._total_size(after.segments - before.segments) == 4096e-6
    finally:
        memory.close()
        memory.unlink()
        wait.set()
        thread.join()
        for file in files:
            file.close()


def test_a_run_is_sampled_with_its_workers(monkeypatch, capsys, tmp_path):
    """A short run, which evaluates twice; trends are tested above."""
    monkeypatch.setattr(long_run, "SAMPLING_INTERVAL", 0.05)
    monkeypatch.setitem(long_run._CONFIG, "log_every", "5 steps")
    monkeypatch.setitem(long_run._CONFIG, "attention_images", 0)
    samples = long_run.measure_long_run(40, batch_size=8, workers=1)
    assert {sample.step for sample in samples} >= {0, 40}
    # The main process, its worker, and the tracker of shared memory.
    assert max(sample.processes for sample in samples) >= 3
    assert max(sample.rss for sample in samples) > 200
    assert samples[-1].allocated > 50
    assert samples[-1].blocks > 10**5
    monkeypatch.setattr(benchmark, "measure_long_run", lambda *arguments: make_samples())
    assert benchmark.main(["long-run", "--out", str(tmp_path), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert len((tmp_path / "long_run.jsonl").read_text().splitlines()) == 1000
    assert Image.open(tmp_path / "long_run.png").width > 1000
    assert benchmark.main(["long-run"]) == 0
    assert "growth per 1,000 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--steps=20", "1000 or more"),
        ("--workers=-1", "0 or more"),
        ("--batch-size=0", "at least 1"),
    ],
)
def test_an_invalid_flag_of_long_run_is_an_input_error(flag, expected):
    with pytest.raises(InputError, match=rf"{flag}: expected {expected}"):
        benchmark.main(["long-run", flag])


def test_the_scale_of_a_dataset(capsys):
    assert benchmark.main(["input", "--scale", "10000", "--json"]) == 0
    costs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [cost["layout"] for cost in costs] == ["folder", "wds", "tfrecord", "array_record"]
    for cost in costs:
        assert cost["images"] == 10_000
        assert 0 < cost["pickled_megabytes"] < 1
        assert cost["megabytes"] < 200
    with pytest.raises(InputError, match=r"--scale=x: expected 'imagenet' or a number"):
        benchmark.main(["input", "--scale", "x"])
