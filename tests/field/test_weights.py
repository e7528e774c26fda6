"""Weights files found in the field: read correctly, or refused with a clear reason."""

import argparse
import collections
import dataclasses
import datetime
import json
import logging
import pathlib
import pickle
import re
import resource
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from convit_jax import convert, models
from convit_jax.errors import InputError, MachineError
from convit_jax.weights import Card, new_path, open_weights, to_torch, write_weights
from tests.field.weight_files import pickled_tensor, pytorch_archive, safetensors_file, timm_config
from tests.helpers import random_parameters, torch_only


@pytest.fixture
def tensors(reference_data):
    """The reference model's tensors: four heads, ten classes, 96 pixels."""
    return safetensors.numpy.load_file(reference_data / "four_heads.safetensors")


@pytest.fixture
def save(tensors, tmp_path):
    """A function that saves content with `torch.save` and returns the path.

    Its attributes T and E are the reference tensors and an average of them, as PyTorch tensors.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is an optional extra")

    def write(content, name="x.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    write.T = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    write.E = {name: tensor * 1.5 for name, tensor in write.T.items()}
    return write


@pytest.fixture
def save_file(tmp_path):
    """A function that saves tensors as .safetensors and returns the path.

    Args:
        tensors: the tensors.
        config: the config.json beside the file, as text or as an object; None for no such file.
        card: the card in its metadata, as text; None for no card.
    """

    def write(tensors, config=None, card=None):
        metadata = None if card is None else {"convit_jax": card}
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata)
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            (tmp_path / "config.json").write_text(text)
        return tmp_path / "model.safetensors"

    return write


@pytest.fixture
def logged_lines(caplog):
    """A function that returns the lines logged since its last call."""
    caplog.set_level(logging.INFO, logger="convit_jax")

    def take_lines():
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return take_lines


def plain_vit(**changes):
    """Return a DeiT's architecture and random tensors in the released layout."""
    architecture = models.architecture("deit_tiny", **{"depth": 1, "num_classes": 3} | changes)
    return architecture, to_torch(random_parameters(architecture), architecture)


def has_tensors(weights, expected):
    return set(weights.tensors) == set(expected) and all(
        np.array_equal(weights.tensors[name], array) for name, array in expected.items()
    )


# Training checkpoints with their arguments
def test_a_training_checkpoint_with_its_arguments(save, tensors):
    import torch

    arguments = argparse.Namespace(
        lr=1e-3, out=pathlib.Path("/x"), mean=np.float64(0.5), ids=np.arange(3),
        kind=np.dtype("f4"), when=datetime.datetime(2021, 1, 1), version=torch.__version__,
        device=torch.device("cpu"), size=torch.Size([1]), some={1}, on=np.bool_(True),
        groups=collections.defaultdict(list, {"a": [1]}), counts=collections.Counter("aab"),
    )  # fmt: skip
    path = save({"model": save.T, "optimizer": {}, "lr_scheduler": {}, "epoch": 3,
                 "model_ema": None, "args": arguments})  # fmt: skip
    assert has_tensors(open_weights(path), tensors)


@torch_only
@pytest.mark.parametrize(
    ("case", "message"),
    [
        (re.compile("a"), "re._compile"),
        (print, "builtins.print"),
        (collections.UserDict(), "UserDict.IterableUserDict"),
    ],
)
def test_globals_that_could_run_code_are_refused_with_advice(save, case, message):
    path = save({"model": save.T, "args": case})
    with pytest.raises(InputError, match=rf"x\.pth was not read: it holds {message}.*state_dict"):
        open_weights(path)


# Types of numbers, and damaged files
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_other_types_of_numbers(kind, save, tensors, tmp_path):
    import safetensors.torch
    import torch

    rounded = {name: tensor.to(getattr(torch, kind)) for name, tensor in save.T.items()}
    expected = {name: tensor.float().numpy() for name, tensor in rounded.items()}
    safetensors.torch.save_file(rounded, tmp_path / "x.safetensors")
    assert has_tensors(open_weights(tmp_path / "x.safetensors"), expected)
    assert has_tensors(open_weights(save(rounded)), expected)


def test_null_metadata_in_the_header(tensors, tmp_path):
    content = safetensors.numpy.save(tensors)
    length = int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": None} | json.loads(content[8 : 8 + length])).encode()
    data = content[8 + length :]
    (tmp_path / "x.safetensors").write_bytes(safetensors_file(header, data=data))
    assert has_tensors(open_weights(tmp_path / "x.safetensors"), tensors)


def test_integer_tensors_beside_the_parameters_are_ignored(tensors, save_file, logged_lines):
    all_tensors = tensors | {
        "num_batches_tracked": np.int64(3)[None],
        "rel_indices": np.zeros(2, bool),
    }
    weights = open_weights(save_file(all_tensors))
    weights.architecture()
    assert has_tensors(weights, tensors)
    assert any("ignored integer tensors" in line for line in logged_lines())


GARBAGE = {
    "a length beyond the file": b"\xff" * 8 + b"{}",
    "a negative length": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "metadata that is a list": safetensors_file({"x": ("F32", [1])}, []),
    "metadata that is a number": safetensors_file({"x": ("F32", [1])}, 5),
    "metadata of numbers": safetensors_file({"x": ("F32", [1])}, {"convit_jax": 5}),
    "a header that is no text": safetensors_file(b"\xff\xfe{}"),
    "a header that is a list": safetensors_file(b"[1]"),
    "a name twice": safetensors_file(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"x":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', data=bytes(12)
    ),
    "an unknown type": safetensors_file(
        b'{"x":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', data=bytes(4)
    ),
    "complex numbers": safetensors_file({"x": ("C64", [1])}),
    "a huge shape": safetensors_file(
        b'{"x":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}',
        data=bytes(4),
    ),
    "no tensors": safetensors_file(b"{}"),
    "an error page": b'{"error": "not found"}',
    "a note of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
}  # fmt: skip


@pytest.mark.parametrize("case", GARBAGE)
def test_a_garbled_safetensors_file_is_refused_in_one_line(case, tmp_path, run_command):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GARBAGE[case])
    code, output = run_command(convert, path, f"{path}.pth")
    assert code == 2
    assert len(output.err.splitlines()) == 1
    assert "x.safetensors" in output.err


@torch_only
@pytest.mark.parametrize(
    "content",
    [
        pytorch_archive(pickled_tensor(4, (10**10,), (1,))),
        pytorch_archive(pickled_tensor(10**11, (10**11,), (1,))),
        pytorch_archive(pickled_tensor(4, (10**11,), (0,))),
        pytorch_archive(pickled_tensor(4, (4,), (1,), 10**12)),
        pytorch_archive(pickled_tensor(4, (4,), (-1,))),
        pytorch_archive(pickled_tensor(4, (2**40, 2**40), (1, 1))),
        pytorch_archive(pickled_tensor(4, (4,), (1,)), bytes(10**8), zipfile.ZIP_DEFLATED),
        pytorch_archive(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        pytorch_archive(b"\x80\x02K\x01."),
        pytorch_archive(b"garbage"),
        b"\x80\x02garbage",
        b"PK\x03\x04 no archive",
        pickle.dumps({"a": 1}, 4),
        pickle.dumps({"a": 1}, 2),
        pytorch_archive(b"\x80\x02cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."),
        pytorch_archive(
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            b"\x8a\x05\x00\x00\x00\x00\x10\x85U\x01d\x87R."
        ),
        pytorch_archive(
            b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
            b"X\x0b\x00\x00\x00V1000000000\x85R\x85R."
        ),
    ],
    ids=range(17),
)
def test_a_garbled_or_hostile_pytorch_file_needs_no_memory(content, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"x\.pth"):
        open_weights(path)
    growth_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert growth_kb < 400_000  # PyTorch itself, if this test is the first to import it


# Wrappers' prefixes
WRAPPED = ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.module.")


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrappers_prefixes_are_removed_in_any_order(prefix, tensors, save_file):
    wrapped = {prefix + name: array for name, array in tensors.items()}
    assert has_tensors(open_weights(save_file(wrapped)), tensors)


def test_a_lightning_checkpoint_with_a_loss_module(save, tensors, logged_lines):
    import torch

    content = {f"model.{name}": tensor for name, tensor in save.T.items()}
    path = save({"state_dict": {**content, "loss.weight": torch.ones(3)}, "loops": {}}, "x.ckpt")
    weights = open_weights(path)
    assert has_tensors(weights, tensors)
    weights.architecture()
    assert any("ignored 1 other tensors, which are not part" in line for line in logged_lines())


def test_a_prefix_that_not_all_names_share_is_not_removed(tensors, save_file):
    mixed = {"module.extra": np.zeros(3, np.float32), **tensors}
    with pytest.raises(InputError, match=r"unexpected: module\.extra"):
        open_weights(save_file(mixed)).model()


# Running averages
@torch_only
@pytest.mark.parametrize("name", ["model_best.pth.tar", "x.pth"])
@pytest.mark.parametrize(
    ("model", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("state_dict", "ema_state_dict"),
    ],
)
def test_the_running_average_is_preferred_and_the_model_can_be_selected(
    model, average, name, save, logged_lines
):
    path = save({model: save.T, average: save.E, "epoch": 3}, name)
    weights = open_weights(path)
    weights.architecture()
    assert np.array_equal(weights.tensors["norm.bias"], save.E["norm.bias"])
    (line,) = [line for line in logged_lines() if "running average" in line]
    assert f"{path}#{model}" in line
    other = open_weights(f"{path}#{model}")
    assert np.array_equal(other.tensors["norm.bias"], save.T["norm.bias"])
    with pytest.raises(InputError, match=f"no model called 'mode'.*{model}"):
        open_weights(f"{path}#mode")


@torch_only
@pytest.mark.parametrize("shape", ["alone", "timm", "swa", "lightning", "nested"])
def test_other_forms_of_running_averages(shape, save):
    import torch

    in_module = {f"module.{name}": tensor for name, tensor in save.E.items()}
    content = {
        "alone": {"model_ema": save.E, "epoch": 3},
        "timm": {"state_dict": save.T, "state_dict_ema": in_module},
        "swa": {**in_module, "n_averaged": torch.tensor(5)},
        "lightning": {
            "state_dict": {f"model.{name}": tensor for name, tensor in save.T.items()}
            | {f"ema_model.{name}": tensor for name, tensor in in_module.items()}
        },
        "nested": {"model": save.T, "ema": {"module": save.E, "decay": 0.9}},
    }[shape]
    weights = open_weights(save(content))
    assert has_tensors(weights, {name: tensor.numpy() for name, tensor in save.E.items()})


def test_a_running_average_may_be_none(save, tensors):
    assert has_tensors(open_weights(save({"model": save.T, "model_ema": None})), tensors)


def test_several_models_must_be_specified(save, tensors):
    path = save({"student": save.T, "teacher": save.E})
    with pytest.raises(InputError, match=r"specify .*x\.pth#student or .*x\.pth#teacher"):
        open_weights(path)
    assert has_tensors(open_weights(f"{path}#student"), tensors)


def test_average_and_parameters_of_a_workdir_can_be_selected(workdir, logged_lines):
    average, last = open_weights(workdir), open_weights(f"{workdir}#params")
    average.architecture()
    assert any("running average" in line and "#params" in line for line in logged_lines())
    assert not np.array_equal(average.tensors["head.weight"], last.tensors["head.weight"])
    with pytest.raises(InputError, match="has no 'ema'"):
        open_weights(f"{workdir}#ema")


# Memory layouts
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
def test_tensors_in_any_memory_layout_are_written_as_read(suffix, save, tensors, tmp_path):
    import torch

    unusual = dict(save.T)
    patches = unusual["patch_embed.proj.weight"]
    unusual["patch_embed.proj.weight"] = patches.contiguous(memory_format=torch.channels_last)
    unusual["head.weight"] = unusual["head.weight"].t().contiguous().t()
    unusual["norm.bias"] = torch.tensor([2.0]).expand(32)
    unusual["blocks.0.attn.v.weight"] = torch.randn(64, 64)[3:35, 5:37]
    unusual["norm.weight"] = torch.randn(64)[::2]
    expected = {name: np.array(tensor.tolist(), np.float32) for name, tensor in unusual.items()}
    converted = tmp_path / f"there{suffix}"
    assert convert.main([str(save(unusual)), str(converted)]) == 0
    assert has_tensors(open_weights(converted), expected)


def test_arrays_are_contiguous_when_written(four, tmp_path, monkeypatch):
    """safetensors writes an array's memory unchanged; version 0.8 does so without a warning."""
    from convit_jax.weights import writing

    written = {}
    monkeypatch.setattr(
        writing.safetensors.numpy, "save", lambda tensors, metadata: written.update(tensors) or b""
    )
    unusual = {name: np.asfortranarray(array).astype(">f4") for name, array in four.tensors.items()}
    unusual["norm.bias"] = np.broadcast_to(np.float32(2), 32)
    weights = type(four)("x", unusual, Card())
    write_weights(weights, new_path(str(tmp_path / "x.safetensors")), weights.architecture())
    for name, array in written.items():
        assert array.flags.c_contiguous, name
        assert array.dtype == "<f4"
        assert array.dtype.isnative
        assert np.array_equal(array, unusual[name])


@pytest.fixture
def four(reference_data):
    return open_weights(reference_data / "four_heads.safetensors")


# Parameters and modules
def test_a_dictionary_of_parameters(save, tensors):
    import torch

    content = {name: torch.nn.Parameter(tensor) for name, tensor in save.T.items()}
    assert has_tensors(open_weights(save(content)), tensors)


def test_a_pickled_module_is_refused(save):
    import torch

    with pytest.raises(InputError, match=r"holds a whole model \(torch\.nn\..*state_dict"):
        open_weights(save(torch.nn.Sequential(torch.nn.Linear(2, 2))))


# Other models
@pytest.mark.parametrize(
    ("extra_name", "message"),
    [
        ("reg_token", "register tokens"),
        ("fc_norm.weight", "averages its patches"),
        ("pre_logits.fc.weight", "pre_logits"),
        ("decoder_blocks.0.norm1.weight", "masked autoencoder"),
        ("norm_pre.weight", "CLIP"),
    ],
)
def test_similar_models_are_recognised_and_refused(extra_name, message, save_file):
    _, tensors = plain_vit()
    path = save_file(tensors | {extra_name: np.ones(3, np.float32)})
    with pytest.raises(InputError) as error:
        open_weights(path).model()
    assert message in str(error.value)
    assert "look like" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer1.0.conv1.weight", "a ResNet"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", "a Swin transformer"),
        ("vit.embeddings.cls_token", "transformers"),
        ("visual.conv1.weight", "CLIP"),
    ],
)
def test_other_models_are_recognised_and_refused(name, message, save_file):
    path = save_file({name: np.ones(3, np.float32)})
    with pytest.raises(InputError, match=rf"model\.safetensors: these are no ConViT.*{message}"):
        open_weights(path).model()


# timm's config.json
@pytest.mark.parametrize("form", ["now", "older"])
@pytest.mark.parametrize("opened", ["file", "directory"])
def test_the_config_beside_the_weights_is_used(form, opened, tensors, save_file, logged_lines):
    config = timm_config(label_names=list("abcdefghij"))
    if form == "older":
        config = {**config.pop("pretrained_cfg"), **config}
    path = save_file(tensors, config)
    weights = open_weights(path if opened == "file" else path.parent)
    preprocessing = weights.preprocessing(weights.architecture())
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    assert preprocessing.crop_fraction == 0.9
    assert weights.class_names() == tuple("abcdefghij")
    assert logged_lines() == []


def test_without_a_config_assumptions_are_logged_once(tensors, save_file, logged_lines):
    weights = open_weights(save_file(tensors))
    for _ in range(2):
        assert weights.preprocessing(weights.architecture()).crop_fraction == 0.875
    (line,) = logged_lines()
    assert "ImageNet's mean and standard deviation and a centre crop of 0.875 are assumed" in line


def test_assumptions_are_not_written(tensors, save_file, tmp_path):
    assert convert.main([str(save_file(tensors)), str(tmp_path / "y.safetensors")]) == 0
    assert open_weights(tmp_path / "y.safetensors").card.assumptions()


def test_the_config_gives_the_image_size_that_the_tensors_lack(save_file):
    architecture, tensors = plain_vit(image_size=(32, 48))
    config = timm_config(num_classes=3, pretrained_cfg={"input_size": [3, 32, 48]})
    assert open_weights(save_file(tensors, config).parent).architecture() == architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1000}, "has 1,000 classes, but the tensors have 10"),
        ({"pretrained_cfg": {"interpolation": "bilinear"}}, "asks for 'bilinear' interpolation"),
        ({"pretrained_cfg": {"crop_mode": "squash"}}, "asks for the crop mode 'squash'"),
    ],
)
def test_unsupported_config_settings_are_logged(changes, message, tensors, save_file, logged_lines):
    open_weights(save_file(tensors, timm_config(**changes)).parent).architecture()
    assert any(message in line for line in logged_lines())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "expected an object"),
        (timm_config(pretrained_cfg=5), "pretrained_cfg is 5"),
        (timm_config(num_classes="ten"), "num_classes is 'ten'"),
        (timm_config(label_names=["a", "b", "c"]), "names 3 classes, but num_classes is 10"),
        (timm_config(pretrained_cfg={"mean": "half"}), "mean is 'half'"),
        (timm_config(pretrained_cfg={"mean": [0.5], "std": [0]}), "std is .*numbers above 0"),
        (timm_config(pretrained_cfg={"mean": [0.5]}), "std is None"),
        (timm_config(pretrained_cfg={"crop_pct": 0}), "crop_fraction is 0"),
        (timm_config(pretrained_cfg={"input_size": [3, 0]}), "input_size is"),
    ],
)
def test_a_garbled_config_is_refused(config, message, tensors, save_file):
    path = save_file(tensors, config)
    with pytest.raises(InputError, match=rf"config\.json.*{message}"):
        open_weights(path.parent)


@pytest.mark.parametrize("config", [{"model_type": "vit"}, {"model": {"name": "convit_tiny"}}, {}])
def test_a_config_of_another_library_is_ignored(config, tensors, save_file):
    assert open_weights(save_file(tensors, config).parent).card == Card()


def test_only_the_published_preprocessing_is_recognised():
    from convit_jax.analysis import is_published_preprocessing
    from convit_jax.data.images.preprocessing import Preprocessing

    assert is_published_preprocessing("convit_tiny", Preprocessing())
    assert is_published_preprocessing("deit_tiny", Preprocessing(crop_fraction=0.9))
    augreg = Preprocessing(crop_fraction=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert not is_published_preprocessing("deit_tiny", augreg)
    assert not is_published_preprocessing("convit_tiny", Preprocessing(crop_fraction=1.0))


# Number of heads
def test_assumed_heads_are_logged_and_can_be_overridden(save_file, logged_lines):
    architecture, tensors = plain_vit(num_heads=4, head_dim=48)
    path = save_file(tensors)
    weights = open_weights(path)
    assert weights.architecture().num_heads == 3
    (line,) = logged_lines()
    assert "3 heads of 64 channels are assumed" in line
    assert "--override num_heads=" in line
    assert open_weights(path).architecture(num_heads=4) == architecture
    assert logged_lines() == []


@torch_only
def test_convert_reports_what_a_pth_cannot_store(save_file, tmp_path, capsys):
    _, tensors = plain_vit(num_heads=4, head_dim=48)
    path = save_file(tensors)
    arguments = ["--override", "num_heads=4", "--json"]
    for name, left_behind in (("y.safetensors", []), ("y.pth", ["num_heads=4"])):
        convert.main([str(path), str(tmp_path / name), *arguments])
        assert json.loads(capsys.readouterr().out)["left_behind"] == left_behind
    assert open_weights(tmp_path / "y.safetensors").architecture().num_heads == 4


# Unusual shapes
UNUSUAL_SHAPES = {
    "blocks.0.mlp.fc1.weight": (None, "no 'blocks.0.mlp.fc1.weight'"),
    "head.weight": (None, "no 'head.weight'"),
    "patch_embed.proj.weight": ((32, 768), r"'patch_embed.proj.weight' has the shape \(32, 768\)"),
    "blocks.0.attn.pos_proj.weight": ((0, 3), r"has the shape \(0, 3\)"),
    "blocks.99999.norm1.weight": ((32,), "blocks are 0 to 3, 99999"),
    f"blocks.{'9' * 5000}.norm1.weight": ((32,), "blocks are 0 to 3, 9"),
    "blocks.7.mlp.fc1.weight": ((32, 32), "blocks are 0 to 3, 7"),
    "pos_embed": ((36, 32), r"'pos_embed' has the shape \(36, 32\)"),
    "cls_token": ((), r"'cls_token' has the shape \(\)"),
    "norm.weight": ((32, 1), r"'norm.weight' has the shape"),
}


@pytest.mark.parametrize("name", UNUSUAL_SHAPES, ids=lambda name: name[:30])
def test_unusual_shapes_are_refused(name, tensors, save_file):
    shape, message = UNUSUAL_SHAPES[name]
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = np.zeros(shape, np.float32)
    path = save_file(tensors)
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{message}"):
        open_weights(path).model()


def test_too_many_blocks_are_refused(tensors, save_file):
    one = np.zeros(32, np.float32)
    tensors |= {f"blocks.{i}.norm1.weight": one for i in range(3000)}
    with pytest.raises(InputError, match="there are 3,000 blocks"):
        open_weights(save_file(tensors)).model()


@pytest.mark.parametrize("heads", [0, -1, 5, "4"])
def test_an_invalid_number_of_heads_is_refused(heads, four):
    with pytest.raises(InputError, match=f"num_heads={heads}: expected a divisor of 32"):
        four.model(num_heads=heads)


# Cards
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", 5),
        ("mean", ["a"]),
        ("mean", [float("nan")] * 3),
        ("std", [0.1, 0.1]),
        ("std", [0.0, 0.1, 0.1]),
        ("crop_fraction", 0),
        ("crop_fraction", float("nan")),
        ("crop_fraction", True),
        ("class_names", ["a", "b", "c"]),
        ("class_names", ["a"] * 10),
        ("class_names", {"a": 1}),
        ("class_names", [1] * 10),
        ("architecture", [1]),
        ("architecture", {"num_heads": "four"}),
        ("architecture", {"num_heads": 4, "colour": 1}),
        ("architecture", {"num_heads": 0}),
        ("architecture", {"num_heads": 4, "depth": 10**9, "gpsa_layers": 1}),
        ("architecture", {"num_heads": 4, "image_size": 5}),
        ("architecture", {"num_heads": 4}),
        ("colour", "blue"),
    ],
)
def test_an_invalid_card_is_refused_with_file_and_field(field, value, tensors, save_file):
    card = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 0.9} | {field: value}
    path = save_file(tensors, card=json.dumps(card))
    with pytest.raises(InputError) as error:
        open_weights(path).model()
    message = {"architecture": "architecture|num_heads|depth|width"}.get(field, field)
    assert re.search(rf"model\.safetensors: .*({message})", str(error.value))


@pytest.mark.parametrize("image_size", [[16, 2**33], [2**33, 2**33]])
def test_a_card_of_a_model_larger_than_any_memory_is_refused(image_size, four, tensors, save_file):
    architecture = dataclasses.asdict(four.model().architecture) | {"image_size": image_size}
    path = save_file(tensors, card=json.dumps({"architecture": architecture}))
    with pytest.raises(InputError, match=r"model\.safetensors: "):
        open_weights(path).model()


@pytest.mark.parametrize("card", ["5", "[]", "null", '"x"', "", "[" * 10_000])
def test_a_card_of_another_json_type_is_refused(card, tensors, save_file):
    path = save_file(tensors, card=card)
    with pytest.raises(InputError, match=r"model\.safetensors: its card cannot be read"):
        open_weights(path)


@pytest.mark.parametrize("metrics", ["5", "[]", '{"accuracy": "x"}', '{"accuracy": NaN}', "{"])
def test_garbled_metrics_do_not_prevent_loading_a_checkpoint(metrics, four, tmp_path):
    for step in ("1", "2"):
        path = new_path(str(tmp_path / "run" / "checkpoints" / step))
        write_weights(four, path, four.architecture())
    destination = tmp_path / "run" / "checkpoints" / "1" / "metrics"
    destination.mkdir()
    (destination / "metrics").write_text(metrics)
    assert has_tensors(open_weights(tmp_path / "run"), four.tensors)


@pytest.mark.parametrize(
    "card", ["5", "{}", '{"architecture": {"num_heads": 4}}', '{"architecture": {"num_heads": 9}}']
)
def test_a_checkpoint_with_another_models_card_is_refused(card, four, tmp_path):
    path = new_path(str(tmp_path / "there"))
    write_weights(four, path, four.architecture())
    (path / "card" / "metadata").write_text(card)
    with pytest.raises(InputError, match=r"checkpoint .*there (is damaged|has no arch)"):
        open_weights(path)


# Shards
@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".bin", marks=torch_only)])
def test_a_model_in_shards(suffix, tensors, save, tmp_path):
    import torch

    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map = {}
    for i in range(3):
        file = f"{stem}-0000{i}-of-00003{suffix}"
        part = {name: tensors[name] for name in sorted(tensors)[i::3]}
        weight_map |= dict.fromkeys(part, file)
        if suffix == ".safetensors":
            safetensors.numpy.save_file(part, tmp_path / file)
        else:
            torch.save({name: save.T[name] for name in part}, tmp_path / file)
    index = tmp_path / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    assert has_tensors(open_weights(tmp_path), tensors)
    assert has_tensors(open_weights(index), tensors)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=rf"index\.json: the shard {file} is missing"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"x": "../x.safetensors"}}',
        '{"weight_map": {"x": "/etc/x.safetensors"}}',
        '{"weight_map": {"x": 5}}',
        '{"weight_map": {"x": "config.json"}}',
    ],
)
def test_an_invalid_index_is_refused(index, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path.parent / "x.safetensors").write_bytes(safetensors_file({"x": ("F32", [1])}))
    with pytest.raises(InputError, match=r"index\.json (is not an index|names the shard)"):
        open_weights(tmp_path)


def test_the_config_beside_a_symbolic_link_is_used(tensors, tmp_path):
    """As in the Hub's cache, where file names are links to files named by their hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "blobs" / "0123abcd")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123abcd")
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps(timm_config()))
    weights = open_weights(tmp_path / "snapshot" / "model.safetensors")
    assert weights.card.mean == (0.5, 0.5, 0.5)


# Written files
@torch_only
def test_a_written_pth_is_reproducible(four, tmp_path):
    contents = []
    for destination in (tmp_path / "a.pth", tmp_path / "there" / "b.pth"):
        write_weights(four, new_path(str(destination)), four.architecture())
        contents.append(destination.read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        assert {name.partition("/")[0] for name in file.namelist()} == {"archive"}


# Machine errors
@pytest.mark.parametrize("errno_value", [13, 24, 12, 5])
def test_machine_errors_are_not_reported_as_damage(errno_value, tensors, save_file, monkeypatch):
    import os

    path = save_file(tensors)

    def fail(self):
        raise OSError(errno_value, os.strerror(errno_value))

    monkeypatch.setattr("etils.epath.gpath._GPath.read_bytes", fail)
    with pytest.raises(MachineError, match=r"model\.safetensors: "):
        open_weights(path)
