"""Every config file, and every argument that it documents, takes a real step at a tiny size."""

import dataclasses

import jax
import numpy as np
import pytest

from convit_jax.config import GPSA_ATTENTION, resolve
from convit_jax.config.typed import differences
from convit_jax.errors import InputError
from convit_jax.training import make_experiment
from convit_jax.training.optimizer import match_parameters, parameter_names
from convit_jax.weights import open_weights
from tests.helpers import load_module

VARIANTS = {
    "digits": ["", "convit", "deit", "deit_impulse"],
    "letters": ["", "deit", "convit_no_gating"],
    "convit_ti": [""],
    "convit_ti_plus": ["", "cifar100"],
    "convit_s": [
        "",
        "fraction=0.05",
        "released",
        "fraction=0.1,ablation=b",
        *(f"ablation={row}" for row in "acdefg"),
    ],
    "convit_s_plus": [""],
    "convit_b": [""],
    "convit_b_plus": [""],
    "deit_ti": [""],
    "deit_ti_plus": [""],
    "deit_s": ["", "fraction=0.05"],
    "deit_s_plus": [""],
    "deit_b": [""],
    "deit_b_plus": [""],
}


def load(repository, name):
    return load_module(repository / "configs" / f"{name}.py")


def test_every_config_file_is_tested(repository):
    assert {path.stem for path in repository.glob("configs/*.py")} == {
        *VARIANTS,
        "imagenet",
        "finetune",
    }


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in VARIANTS for argument in VARIANTS[name]]
)
def test_a_step_of_every_variant(name, argument, repository):
    module = load(repository, name)
    config = resolve(module.get_config(argument) if argument else module.get_config())
    assert f"configs/{name}.py" in module.__doc__
    # The same experiment with fewer images a step and a smaller model.
    model = dataclasses.replace(
        config.model,
        depth=2,
        gpsa_layers=config.model.gpsa_layers and 1,
        num_heads=4,
        head_dim=4,
        dtype="float32",
    )
    if config.model.name.startswith("convit"):
        model = dataclasses.replace(model, gpsa_layers=1)
    small = dataclasses.replace(config, model=model, batch_size=4)
    if config.data.image_size == (224,):
        small = dataclasses.replace(small, data=dataclasses.replace(small.data, image_size=(32,)))
    config = resolve(dataclasses.asdict(small))
    experiment = make_experiment(config, num_examples=1000, num_classes=10)
    a = experiment.architecture
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, *a.image_size, a.in_channels)).astype(np.uint8),
        "label": rng.integers(0, 10, 4).astype(np.int32),
    }
    before = jax.jit(experiment.init_state)()
    after, metrics = jax.jit(experiment.train_step)(before, batch)
    assert int(after.step) == 1
    assert np.isfinite(float(metrics["loss"]))
    frozen = match_parameters(before.params, config.optimizer.frozen, "optimizer.frozen")
    unchanged = jax.tree.map(lambda x, y: np.array_equal(x, y), before.params, after.params)
    names = parameter_names(before.params)
    for name, is_frozen, same in zip(
        names, jax.tree.leaves(frozen), jax.tree.leaves(unchanged), strict=True
    ):
        assert same or not is_frozen, name
    assert not all(jax.tree.leaves(unchanged))


def test_the_demo_runs_on_eight_devices_in_two_parts(repository):
    """As in docs/tpu.md, and with the recipe's mixing in pairs."""
    config = load(repository, "digits").get_config()
    assert config.batch_size % (8 * 2 * 2) == config.eval_batch_size % 8 == 0


@pytest.mark.parametrize("name", ["digits", "letters"])
def test_an_unknown_variant_is_one_sentence(name, repository):
    with pytest.raises(InputError, match=rf"{name}.py:dei: did you mean 'deit'"):
        load(repository, name).get_config("dei")


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("ablation=a", {}),
        ("ablation=b", {"model.use_gating": False}),
        ("ablation=c", {"model.conv_init": False}),
        ("ablation=d", {"model.use_gating": False, "model.conv_init": False}),
        ("ablation=e", {"model.name": "deit_small"}),
        ("ablation=f", {"model.use_gating": False, "optimizer.frozen": (GPSA_ATTENTION,)}),
        (
            "ablation=g",
            {
                "model.use_gating": False,
                "model.conv_init": False,
                "optimizer.frozen": (GPSA_ATTENTION,),
            },
        ),
        (
            "fraction=0.05",
            {
                "data.fraction": 0.05,
                "keep_budget": True,
                "eval_every": "20 epochs",
                "checkpoint.every": "20 epochs",
            },
        ),
        (
            "cifar100",
            {
                "data.train": "tfds:cifar100:train",
                "data.eval": "tfds:cifar100:test",
                "train_for": "1000 epochs",
            },
        ),
        (
            "released",
            {
                "optimizer.schedule_every": "epoch",
                "optimizer.schedule_lag": 1,
                "optimizer.no_decay": (r".*\.(bias|scale|gating)",),
            },
        ),
    ],
)
def test_an_argument_changes_only_its_own_keys(argument, changes, repository):
    module = load(repository, "convit_s")
    plain, changed = (resolve(module.get_config(a)) for a in ("", argument))
    assert {name: after for name, _, after, _ in differences(plain, changed)} == changes


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("convit_no_gating", {"model.use_gating": False}),
        ("convit_no_conv_init", {"model.conv_init": False}),
        ("deit", {"model.name": "deit_tiny", "model.gpsa_layers": None}),
        (
            "deit_mimetic",
            {"model.name": "deit_tiny", "model.gpsa_layers": None, "model.init": "mimetic"},
        ),
        (
            "deit_impulse",
            {"model.name": "deit_tiny", "model.gpsa_layers": None, "model.init": "impulse"},
        ),
    ],
)
@pytest.mark.parametrize("name", ["digits", "letters"])
def test_compared_models_differ_in_one_thing_and_their_learning_rate(
    name, model, changes, repository
):
    module = load(repository, name)
    plain, changed = (resolve(module.get_config(m)) for m in ("convit", model))
    rate = changed.optimizer.learning_rate
    assert rate == module.LEARNING_RATES[model]
    if rate != plain.optimizer.learning_rate:
        changes = changes | {"optimizer.learning_rate": rate}
    assert {key: after for key, _, after, _ in differences(plain, changed)} == changes
    assert module.LEARNING_RATES.keys() == load(repository, "digits").MODELS.keys()


@pytest.mark.parametrize(
    ("name", "rows"),
    [("convit_ti", 256), ("deit_ti", 256), ("convit_ti_plus", 64), ("convit_s", 64),
     ("convit_b", 64), ("convit_b_plus", 64)],
)  # fmt: skip
def test_mixup_and_cutmix_draw_for_the_rows_of_a_gpu_of_the_released_runs(name, rows, repository):
    config = resolve(load(repository, name).get_config())
    assert config.augment.mix_group == rows
    experiment = make_experiment(config, num_examples=5000, num_classes=10)
    assert experiment.step_config.mixing.group == rows
    # A batch that is smaller, to try something out, is one group.
    resolve(dataclasses.asdict(dataclasses.replace(config, batch_size=8)))


def test_the_papers_runs_have_the_papers_lengths(repository):
    def steps(name, argument, num_examples):
        config = resolve(load(repository, name).get_config(argument))
        experiment = make_experiment(config, num_examples=num_examples, num_classes=1000)
        return experiment.order.steps_per_epoch, experiment.total_steps

    assert steps("convit_s", "", 1_281_167) == (1251, 300 * 1251)
    per_epoch, total = steps("convit_s", "fraction=0.05", 64_000)
    assert (per_epoch, total) == (62, 300 * 62 * 20)
    assert steps("convit_s_plus", "", 1_281_167)[0] == 1_281_167 // 512


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("convit_s", "fraction=0.1,foo=3", "'foo=3': expected one of ablation, cifar100, fract"),
        ("convit_s", "fraction=0.1,fraction=0.2", "fraction is given twice"),
        ("convit_s", "fractoin=0.1", "'fractoin=0.1': did you mean 'fraction'"),
        ("convit_s", "fraction=two", "'fraction=two': expected a share"),
        ("convit_s", "ablation=h", "expected a row of Table 3, a to g"),
        ("deit_s", "ablation=b", "deit_small has no GPSA"),
        ("convit_s", "cifar100=yes", "expected cifar100, which takes no value"),
    ],
)
def test_a_wrong_argument_is_one_sentence(name, argument, message, repository):
    with pytest.raises(InputError, match=message):
        load(repository, name).get_config(argument)


@pytest.fixture
def finetune(repository):
    """A function of the argument: configs/finetune.py's config."""
    module = load(repository, "finetune")
    return lambda argument: resolve(module.get_config(argument))


def test_fine_tuning_takes_the_weights_own_model_and_preprocessing(
    finetune, workdir, reference_data
):
    config = finetune(f"data=digits:train,eval=digits:test,weights={workdir}")
    architecture = make_experiment(config, num_examples=100, num_classes=10).architecture
    original = open_weights(workdir).architecture()
    assert architecture == dataclasses.replace(original, drop_path_rate=0.1)
    assert (config.data.mean, config.data.std) == ((0.3,), (0.4,))
    assert (config.data.eval, config.data.holdout) == ("digits:test", 0.0)
    assert config.augment.crop == "none"  # digits may not be mirrored
    weights = reference_data / "nine_heads.safetensors"
    config = finetune(f"data=tfds:x:train,weights={weights},image_size=96,epochs=7")
    assert (config.model.name, config.model.head_dim) == ("convit_small", 8)
    assert config.data.image_size == (96,)
    assert (config.train_for, config.data.holdout) == ("7 epochs", 0.1)
    assert config.augment.crop == "random_resized"


def test_a_probe_trains_only_the_head(finetune, workdir):
    config = finetune(f"data=digits:train,weights={workdir},probe")
    experiment = make_experiment(config, num_examples=100, num_classes=10)
    params = experiment.abstract_state().params
    frozen = jax.tree.leaves(match_parameters(params, config.optimizer.frozen, "optimizer.frozen"))
    named = zip(parameter_names(params), frozen, strict=True)
    assert {name for name, is_frozen in named if not is_frozen} == {"head.kernel", "head.bias"}


def test_the_parts_of_a_folder_are_used_by_their_names(finetune, workdir, tmp_path):
    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
    config = finetune(f"data=folder:{tmp_path},weights={workdir}")
    assert config.data.train == f"folder:{tmp_path}/train"
    assert config.data.eval == f"folder:{tmp_path}/validation"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data=digits:train", "weights= is missing, expected configs/finetune.py:data="),
        ("", "data= is missing"),
        ("dtaa=x,weights=y", "'dtaa=x': did you mean 'data'"),
        ("data=x,weights=nowhere.safetensors", "nowhere.safetensors: the file does not exist"),
        ("data=x,weights=W,probe=1", "'probe=1': expected probe, which takes no value"),
        ("data=x,weights=W,epochs=many", "'epochs=many': expected a whole number above 0"),
    ],
)
def test_mistakes_in_fine_tuning_are_one_sentence(finetune, workdir, argument, message):
    with pytest.raises(InputError, match=message):
        finetune(argument.replace("W", str(workdir)))
