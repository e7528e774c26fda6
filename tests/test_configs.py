"""Every config file, and every argument that it documents, takes a real step at a tiny size."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from convit_jax.config import resolve
from convit_jax.errors import InputError
from convit_jax.training import make_experiment

VARIANTS = {"digits": ["", "convit", "deit"]}


def load(repository, name):
    spec = importlib.util.spec_from_file_location(name, repository / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_config_file_is_tested(repository):
    assert {path.stem for path in repository.glob("configs/*.py")} == set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in VARIANTS for argument in VARIANTS[name]]
)
def test_a_step_of_every_variant(name, argument, repository):
    module = load(repository, name)
    config = resolve(module.get_config(argument) if argument else module.get_config())
    assert f"configs/{name}.py" in module.__doc__
    # The same experiment with fewer images a step and a shallower model.
    model = dataclasses.replace(config.model, depth=2, gpsa_layers=config.model.gpsa_layers and 1)
    config = resolve(dataclasses.asdict(dataclasses.replace(config, model=model, batch_size=4)))
    experiment = make_experiment(config, num_examples=1000, num_classes=10)
    a = experiment.architecture
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, *a.image_size, a.in_channels)).astype(np.uint8),
        "label": rng.integers(0, 10, 4).astype(np.int32),
    }
    state, metrics = jax.jit(experiment.train_step)(jax.jit(experiment.init_state)(), batch)
    assert int(state.step) == 1
    assert np.isfinite(float(metrics["loss"]))


def test_the_twins_of_the_demo_differ_in_attention_alone(repository):
    module = load(repository, "digits")
    convit, deit = (resolve(module.get_config(name)) for name in ("convit", "deit"))
    differing = {
        name
        for name in (field.name for field in dataclasses.fields(convit))
        if getattr(convit, name) != getattr(deit, name)
    }
    assert differing == {"model"}
    assert (convit.model.num_heads, convit.model.depth) == (deit.model.num_heads, deit.model.depth)


def test_an_unknown_variant_is_told_in_a_sentence(repository):
    with pytest.raises(InputError, match=r"digits.py:dei: did you mean 'deit'"):
        load(repository, "digits").get_config("dei")
