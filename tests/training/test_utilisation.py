"""The share of the devices' peak that a run uses, and the peaks themselves."""

from types import SimpleNamespace

import numpy as np
import pytest

from convit_jax.models import training_flops
from convit_jax.system.peak_flops import peak_flops
from convit_jax.training import make_experiment
from convit_jax.training.utilisation import make_utilisation


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v5 lite", 197),
        ("TPU v6e", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_peaks_are_the_documented_ones(kind, teraflops):
    assert peak_flops(kind, "bfloat16") == (teraflops and teraflops * 1e12)
    assert peak_flops(kind, "float32") is None


def test_the_share_counts_three_forward_passes_an_image_on_all_devices(make_config):
    config = make_config(model__dtype="bfloat16")
    experiment = make_experiment(config, num_examples=1000, num_classes=10)
    chips = [SimpleNamespace(device_kind="TPU v5e")] * 4
    mesh = SimpleNamespace(size=4, devices=np.array(chips, dtype=object))
    flops = training_flops(experiment.architecture)
    assert make_utilisation(experiment, mesh)(1e6) == {"mfu": flops * 1e6 / (4 * 197e12)}
    unknown = SimpleNamespace(size=1, devices=np.array([SimpleNamespace(device_kind="cpu")]))
    assert make_utilisation(experiment, unknown)(1e6) == {}
