import dataclasses
import json

import pytest

from convit_jax.config import Config, duration_in_steps, resolve, template
from convit_jax.config.typed import differences, keys, unknown_key
from convit_jax.errors import InputError


def test_the_template_is_the_defaults():
    assert resolve(template()) == Config()
    assert resolve({}) == Config()


def test_every_key_has_its_own_meaning():
    meanings = [field.metadata["help"] for field in keys(Config).values()]
    assert all(len(meaning) > 5 for meaning in meanings)
    assert len(set(meanings)) == len(meanings)


def test_a_saved_config_is_read_back_the_same():
    config = resolve({"data": {"image_size": (32, 48)}, "optimizer": {"clip_norm": 1.0}})
    assert resolve(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bach_size": 3}, "no config key 'bach_size': did you mean 'batch_size'"),
        ({"optimizer": {"wieght_decay": 0.1}}, "did you mean 'optimizer.weight_decay'"),
        ({"learning_rate": 0.1}, "did you mean 'optimizer.learning_rate'"),
        ({"model": {"zzz": 1}}, "--help lists them"),
        ({"batch_size": "many"}, "config.batch_size='many': expected int"),
        ({"batch_size": 3.5}, "expected int"),
        ({"batch_size": True}, "expected int"),
        ({"model": {"use_gating": 1}}, "config.model.use_gating=1: expected bool"),
        ({"data": {"mean": ("a", 1.0, 1.0)}}, "config.data.mean='a': expected float"),
        ({"data": 3}, "config.data is a section"),
        ({"batch_size": 0}, "config.batch_size=0: expected 1 to 1048576"),
        ({"optimizer": {"accumulate": 3}}, "accumulate=3: expected a divisor of batch_size"),
        ({"train_for": "3 weeks"}, "train_for='3 weeks': expected '<number> steps' "),
        (
            {"train_for": "1.5 steps"},
            r"'<number> steps' \(a whole one\) or '<number> epochs', above 0",
        ),
        ({"log_every": "0 steps"}, "log_every='0 steps': expected .*, above 0"),
        ({"optimizer": {"warmup": "soon"}}, "config.optimizer.warmup='soon'"),
        ({"model": {"name": "vit"}}, "no model is called 'vit'"),
        ({"model": {"name": "deit_tiny", "conv_init": True}}, "does not use conv_init"),
        ({"model": {"in_channels": 1}}, "config.data.mean=.*expected 1 values"),
        ({"data": {"image_size": (1, 2, 3)}}, "expected 1 or 2 numbers, each at least 1"),
    ],
)
def test_mistakes_are_one_sentence(values, message):
    with pytest.raises(InputError, match=message):
        resolve(values)


def test_durations_are_in_steps_or_epochs():
    def steps(value):
        return duration_in_steps(resolve({"train_for": value}), "train_for", 100)

    assert [steps("7 steps"), steps("1 step"), steps("3 epochs"), steps("0.5 epochs")] == [
        7, 1, 300, 50,
    ]  # fmt: skip


def test_differences_include_what_is_fixed_for_a_run():
    old = resolve({})
    new = resolve({"seed": 1, "log_every": "5 steps", "model": {"depth": 3, "gpsa_layers": 2}})
    changes = {key: (before, after, fixed) for key, before, after, fixed in differences(old, new)}
    assert changes == {
        "seed": (0, 1, True),
        "log_every": ("50 steps", "5 steps", False),
        "model.depth": (None, 3, True),
        "model.gpsa_layers": (None, 2, True),
    }


def test_every_key_is_read(make_config, monkeypatch, tmp_path):
    """A key that is not read would be a setting without effect."""
    from convit_jax.training import loop

    read = set()

    def note_reads(section, path=""):
        for name in (field.name for field in dataclasses.fields(section)):
            kind = {f.name: f.type for f in dataclasses.fields(section)}[name]
            if dataclasses.is_dataclass(kind):
                note_reads(kind, f"{path}{name}.")

        def read_attribute(self, name):
            if not name.startswith("_"):
                read.add(path + name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(section, "__getattribute__", read_attribute)

    config = make_config(train_for="2 steps")
    # Checks, comparisons and config.json read every key, so they do not count.
    for module, name in (
        (loop.workdirs, "write_config"),
        (loop, "check_same_run"),
        (loop.saving, "save"),
        (loop.saving, "finish_saving"),
    ):
        monkeypatch.setattr(module, name, lambda *arguments: None)
    note_reads(Config)
    loop.train(config, str(tmp_path))
    # The model and the transforms take these as whole sections; their tests cover each key.
    by_section = {key for key in keys(Config) if key.startswith(("model.", "augment."))}
    assert set(keys(Config)) - by_section <= read


def test_unknown_key_names_the_nearest_in_any_section():
    assert "optimizer.b1" in unknown_key(Config, "b1")
