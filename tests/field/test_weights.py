"""Weights files that people have: read right, or named for what they are."""

import argparse
import collections
import dataclasses
import datetime
import importlib.util
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
from convit_jax.console import command_line
from convit_jax.errors import InputError, MachineError
from convit_jax.weights import Card, new_path, open_weights, to_torch, write_weights
from convit_jax.weights.torch_names import parameter_shapes
from tests.field.weight_files import archive, claim, safetensors_file, timm_config

torch_only = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: .pth files are an optional extra",
)


@pytest.fixture
def tensors(reference_data):
    """The reference model's tensors: four heads, ten classes, 96 pixels."""
    return safetensors.numpy.load_file(reference_data / "four_heads.safetensors")


@pytest.fixture
def save(tensors, tmp_path):
    """A function of what `torch.save` is to write, and the file's name; T is the tensors there."""
    torch = pytest.importorskip("torch", reason="PyTorch is an optional extra")

    def write(content, name="x.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    write.T = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    write.E = {name: tensor * 1.5 for name, tensor in write.T.items()}
    return write


@pytest.fixture
def lines(caplog):
    """A function: the lines that were logged since it was last asked."""
    caplog.set_level(logging.INFO, logger="convit_jax")

    def take():
        text = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return text

    return take


def plain_vit(**changes):
    """A model of plain attention with random tensors, as `.safetensors` has them."""
    made = models.architecture("deit_tiny", **{"depth": 1, "num_classes": 3} | changes)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(made)
    params = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    return made, to_torch(params, made)


def same(weights, expected):
    return set(weights.tensors) == set(expected) and all(
        np.array_equal(weights.tensors[name], array) for name, array in expected.items()
    )


# W1
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
    assert same(open_weights(path), tensors)


@torch_only
@pytest.mark.parametrize(
    ("what", "told"),
    [
        (re.compile("a"), "re._compile"),
        (print, "builtins.print"),
        (collections.UserDict(), "UserDict.IterableUserDict"),
    ],
)
def test_what_could_run_code_is_named_with_what_to_do(save, what, told):
    path = save({"model": save.T, "args": what})
    with pytest.raises(InputError, match=rf"x\.pth was not read: it holds {told}.*state_dict"):
        open_weights(path)


# W2
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_other_types_of_numbers(kind, save, tensors, tmp_path):
    import safetensors.torch
    import torch

    rounded = {name: tensor.to(getattr(torch, kind)) for name, tensor in save.T.items()}
    expected = {name: tensor.float().numpy() for name, tensor in rounded.items()}
    safetensors.torch.save_file(rounded, tmp_path / "x.safetensors")
    assert same(open_weights(tmp_path / "x.safetensors"), expected)
    assert same(open_weights(save(rounded)), expected)


def test_a_header_whose_metadata_is_null(tensors, tmp_path):
    content = safetensors.numpy.save(tensors)
    length = int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": None} | json.loads(content[8 : 8 + length])).encode()
    data = content[8 + length :]
    (tmp_path / "x.safetensors").write_bytes(safetensors_file(header, data=data))
    assert same(open_weights(tmp_path / "x.safetensors"), tensors)


def test_counters_beside_the_parameters(tensors, tmp_path, lines):
    whole = tensors | {"num_batches_tracked": np.int64(3)[None], "rel_indices": np.zeros(2, bool)}
    safetensors.numpy.save_file(whole, tmp_path / "x.safetensors")
    weights = open_weights(tmp_path / "x.safetensors")
    weights.architecture()
    assert same(weights, tensors)
    assert any("left out, whole numbers" in line for line in lines())


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


@pytest.mark.parametrize("what", GARBAGE)
def test_a_garbled_safetensors_file(what, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GARBAGE[what])
    assert command_line.run("convert", lambda: convert.main([str(path), f"{path}.pth"])) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "x.safetensors" in told


@torch_only
@pytest.mark.parametrize(
    "content",
    [
        archive(claim(4, (10**10,), (1,))),
        archive(claim(10**11, (10**11,), (1,))),
        archive(claim(4, (10**11,), (0,))),
        archive(claim(4, (4,), (1,), 10**12)),
        archive(claim(4, (4,), (-1,))),
        archive(claim(4, (2**40, 2**40), (1, 1))),
        archive(claim(4, (4,), (1,)), bytes(10**8), zipfile.ZIP_DEFLATED),
        archive(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        archive(b"\x80\x02K\x01."),
        archive(b"garbage"),
        b"\x80\x02garbage",
        b"PK\x03\x04 no archive",
        pickle.dumps({"a": 1}, 4),
        pickle.dumps({"a": 1}, 2),
        archive(b"\x80\x02cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."),
        archive(
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            b"\x8a\x05\x00\x00\x00\x00\x10\x85U\x01d\x87R."
        ),
        archive(
            b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
            b"X\x0b\x00\x00\x00V1000000000\x85R\x85R."
        ),
    ],
    ids=range(17),
)
def test_a_garbled_or_dishonest_pytorch_file_costs_no_memory(content, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"x\.pth"):
        open_weights(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000  # kB; PyTorch itself, if this is the first that imports it


# W3
WRAPPED = ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.module.")


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrappers_prefixes_in_any_order(prefix, tensors, tmp_path):
    wrapped = {prefix + name: array for name, array in tensors.items()}
    safetensors.numpy.save_file(wrapped, tmp_path / "x.safetensors")
    assert same(open_weights(tmp_path / "x.safetensors"), tensors)


def test_a_lightning_checkpoint_with_a_loss_of_its_own(save, tensors, lines):
    import torch

    content = {f"model.{name}": tensor for name, tensor in save.T.items()}
    path = save({"state_dict": {**content, "loss.weight": torch.ones(3)}, "loops": {}}, "x.ckpt")
    weights = open_weights(path)
    assert same(weights, tensors)
    weights.architecture()
    assert any("left out, no part of the model: 1" in line for line in lines())


def test_a_prefix_that_not_all_names_have_stays(tensors, tmp_path):
    mixed = {"module.extra": np.zeros(3, np.float32), **tensors}
    safetensors.numpy.save_file(mixed, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"unexpected: module\.extra"):
        open_weights(tmp_path / "x.safetensors").model()


# W4
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
def test_the_running_average_is_taken_and_the_other_can_be_had(model, average, name, save, lines):
    path = save({model: save.T, average: save.E, "epoch": 3}, name)
    weights = open_weights(path)
    weights.architecture()
    assert np.array_equal(weights.tensors["norm.bias"], save.E["norm.bias"])
    (line,) = [line for line in lines() if "running average" in line]
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
    assert same(weights, {name: tensor.numpy() for name, tensor in save.E.items()})


def test_a_running_average_that_is_none(save, tensors):
    assert same(open_weights(save({"model": save.T, "model_ema": None})), tensors)


def test_several_models_are_asked_about(save, tensors):
    path = save({"student": save.T, "teacher": save.E})
    with pytest.raises(InputError, match=r"say which, by .*x\.pth#student or .*x\.pth#teacher"):
        open_weights(path)
    assert same(open_weights(f"{path}#student"), tensors)


def test_of_a_workdir_either_can_be_had(workdir, lines):
    average, last = open_weights(workdir), open_weights(f"{workdir}#params")
    average.architecture()
    assert any("running average" in line and "#params" in line for line in lines())
    assert not np.array_equal(average.tensors["head.weight"], last.tensors["head.weight"])
    with pytest.raises(InputError, match="has no 'ema'"):
        open_weights(f"{workdir}#ema")


# W5
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
def test_tensors_in_any_memory_layout_are_written_as_read(suffix, save, tensors, tmp_path):
    import torch

    odd = dict(save.T)
    patches = odd["patch_embed.proj.weight"]
    odd["patch_embed.proj.weight"] = patches.contiguous(memory_format=torch.channels_last)
    odd["head.weight"] = odd["head.weight"].t().contiguous().t()
    odd["norm.bias"] = torch.tensor([2.0]).expand(32)
    odd["blocks.0.attn.v.weight"] = torch.randn(64, 64)[3:35, 5:37]
    odd["norm.weight"] = torch.randn(64)[::2]
    expected = {name: np.array(tensor.tolist(), np.float32) for name, tensor in odd.items()}
    there = tmp_path / f"there{suffix}"
    assert convert.main([str(save(odd)), str(there)]) == 0
    assert same(open_weights(there), expected)


def test_what_the_libraries_that_write_are_given_lies_in_order(four, tmp_path, monkeypatch):
    """safetensors writes an array's memory as it lies, with 0.8 without a word."""
    from convit_jax.weights import writing

    given = {}
    monkeypatch.setattr(
        writing.safetensors.numpy, "save", lambda tensors, metadata: given.update(tensors) or b""
    )
    odd = {name: np.asfortranarray(array).astype(">f4") for name, array in four.tensors.items()}
    odd["norm.bias"] = np.broadcast_to(np.float32(2), 32)
    weights = type(four)("x", odd, Card())
    write_weights(weights, new_path(str(tmp_path / "x.safetensors")), weights.architecture())
    for name, array in given.items():
        assert array.flags.c_contiguous, name
        assert array.dtype == "<f4"
        assert array.dtype.isnative
        assert np.array_equal(array, odd[name])


@pytest.fixture
def four(reference_data):
    return open_weights(reference_data / "four_heads.safetensors")


# W6
def test_a_dictionary_of_parameters(save, tensors):
    import torch

    content = {name: torch.nn.Parameter(tensor) for name, tensor in save.T.items()}
    assert same(open_weights(save(content)), tensors)


def test_a_whole_module_is_named(save):
    import torch

    with pytest.raises(InputError, match=r"holds a whole model \(torch\.nn\..*state_dict"):
        open_weights(save(torch.nn.Sequential(torch.nn.Linear(2, 2))))


# W7
@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("dist_token", "distilled DeiT"),
        ("head_dist.weight", "distilled DeiT"),
        ("blocks.0.ls1.gamma", "DeiT III"),
        ("reg_token", "register tokens"),
        ("fc_norm.weight", "averages its patches"),
        ("pre_logits.fc.weight", "pre_logits"),
        ("decoder_blocks.0.norm1.weight", "masked autoencoder"),
        ("norm_pre.weight", "CLIP"),
    ],
)
def test_models_like_ours_are_named_for_what_they_are(extra, told, tmp_path):
    _, tensors = plain_vit()
    safetensors.numpy.save_file(
        tensors | {extra: np.ones(3, np.float32)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(InputError) as error:
        open_weights(tmp_path / "x.safetensors").model()
    assert told in str(error.value)
    assert "look like" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("layer1.0.conv1.weight", "a ResNet"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", "a Swin transformer"),
        ("vit.embeddings.cls_token", "transformers"),
        ("visual.conv1.weight", "CLIP"),
    ],
)
def test_other_models_are_named_for_what_they_are(name, told, tmp_path):
    safetensors.numpy.save_file({name: np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=rf"x\.safetensors: these are no ConViT.*{told}"):
        open_weights(tmp_path / "x.safetensors").model()


# W8
@pytest.mark.parametrize("form", ["now", "older"])
@pytest.mark.parametrize("opened", ["file", "directory"])
def test_the_config_beside_the_weights_decides(form, opened, tensors, tmp_path, lines):
    config = timm_config(label_names=list("abcdefghij"))
    if form == "older":
        config = {**config.pop("pretrained_cfg"), **config}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = open_weights(tmp_path / "model.safetensors" if opened == "file" else tmp_path)
    preprocessing = weights.preprocessing(weights.architecture())
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    assert preprocessing.crop_fraction == 0.9
    assert weights.class_names() == tuple("abcdefghij")
    assert lines() == []


def test_without_a_config_a_line_says_what_is_assumed_once(tensors, tmp_path, lines):
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    weights = open_weights(tmp_path / "x.safetensors")
    for _ in range(2):
        assert weights.preprocessing(weights.architecture()).crop_fraction == 0.875
    (line,) = lines()
    assert "ImageNet's mean and standard deviation and a centre crop of 0.875 are assumed" in line


def test_what_was_assumed_is_not_written_as_if_it_were_known(tensors, tmp_path):
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    assert convert.main([str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]) == 0
    assert open_weights(tmp_path / "y.safetensors").card.assumed()


def test_the_config_tells_the_image_size_where_the_tensors_do_not(tmp_path):
    made, tensors = plain_vit(image_size=(32, 48))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    config = timm_config(num_classes=3, pretrained_cfg={"input_size": [3, 32, 48]})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_weights(tmp_path).architecture() == made


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_classes": 1000}, "speaks of 1,000 classes, the tensors tell 10 apart"),
        ({"pretrained_cfg": {"interpolation": "bilinear"}}, "asks for 'bilinear' interpolation"),
        ({"pretrained_cfg": {"crop_mode": "squash"}}, "asks for the crop mode 'squash'"),
    ],
)
def test_what_is_not_done_as_the_config_says_is_said(changes, told, tensors, tmp_path, lines):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(timm_config(**changes)))
    open_weights(tmp_path).architecture()
    assert any(told in line for line in lines())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "cannot be read"),
        ("[1]", "expected an object"),
        (timm_config(pretrained_cfg=5), "pretrained_cfg is 5"),
        (timm_config(num_classes="ten"), "num_classes is 'ten'"),
        (timm_config(label_names=["a", "b", "c"]), "names 3 classes, and says that there are 10"),
        (timm_config(pretrained_cfg={"mean": "half"}), "mean is 'half'"),
        (timm_config(pretrained_cfg={"mean": [0.5], "std": [0]}), "std is .*numbers above 0"),
        (timm_config(pretrained_cfg={"mean": [0.5]}), "std is None"),
        (timm_config(pretrained_cfg={"crop_pct": 0}), "crop_fraction is 0"),
        (timm_config(pretrained_cfg={"input_size": [3, 0]}), "input_size is"),
    ],
)
def test_a_garbled_config_is_one_sentence(config, told, tensors, tmp_path):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"config\.json.*{told}"):
        open_weights(tmp_path)


@pytest.mark.parametrize("config", [{"model_type": "vit"}, {"model": {"name": "convit_tiny"}}, {}])
def test_a_config_that_is_none_of_timms_says_nothing(config, tensors, tmp_path):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_weights(tmp_path).card == Card()


def test_another_preprocessing_than_the_published_is_not_compared():
    from convit_jax.analysis import is_published_preprocessing
    from convit_jax.data.images.preprocessing import Preprocessing

    assert is_published_preprocessing("convit_tiny", Preprocessing())
    assert is_published_preprocessing("deit_tiny", Preprocessing(crop_fraction=0.9))
    augreg = Preprocessing(crop_fraction=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert not is_published_preprocessing("deit_tiny", augreg)
    assert not is_published_preprocessing("convit_tiny", Preprocessing(crop_fraction=1.0))


# W9
def test_heads_that_tensors_do_not_tell_are_said_and_can_be_named(tmp_path, lines):
    made, tensors = plain_vit(num_heads=4, head_dim=48)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    weights = open_weights(tmp_path / "x.safetensors")
    assert weights.architecture().num_heads == 3
    (line,) = lines()
    assert "3 of 64 channels are assumed" in line
    assert "--override num_heads=" in line
    named = open_weights(tmp_path / "x.safetensors")
    assert named.architecture(num_heads=4) == made
    assert lines() == []


@torch_only
def test_what_a_pth_does_not_tell_is_said_when_it_is_written(tmp_path, capsys):
    _, tensors = plain_vit(num_heads=4, head_dim=48)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    arguments = ["--override", "num_heads=4", "--json"]
    for name, left_behind in (("y.safetensors", []), ("y.pth", ["num_heads=4"])):
        convert.main([str(tmp_path / "x.safetensors"), str(tmp_path / name), *arguments])
        assert json.loads(capsys.readouterr().out)["left_behind"] == left_behind
    assert open_weights(tmp_path / "y.safetensors").architecture().num_heads == 4


# W10
ODD = {
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


@pytest.mark.parametrize("name", ODD, ids=lambda name: name[:30])
def test_odd_shapes_are_one_sentence_at_once(name, tensors, tmp_path):
    shape, told = ODD[name]
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = np.zeros(shape, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=rf"x\.safetensors: .*{told}"):
        open_weights(tmp_path / "x.safetensors").model()


def test_very_many_blocks_are_not_built(tensors, tmp_path):
    one = np.zeros(32, np.float32)
    tensors |= {f"blocks.{i}.norm1.weight": one for i in range(3000)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="there are 3,000 blocks"):
        open_weights(tmp_path / "x.safetensors").model()


@pytest.mark.parametrize("heads", [0, -1, 5, "4"])
def test_a_number_of_heads_that_will_not_do(heads, four):
    with pytest.raises(InputError, match=f"num_heads={heads}: expected a divisor of 32"):
        four.model(num_heads=heads)


# W11
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
def test_a_card_that_will_not_do_is_named_by_file_and_field(field, value, tensors, tmp_path):
    card = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 0.9} | {field: value}
    metadata = {"convit_jax": json.dumps(card)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(InputError) as error:
        open_weights(tmp_path / "x.safetensors").model()
    told = {"architecture": "architecture|num_heads|depth|width"}.get(field, field)
    assert re.search(rf"x\.safetensors: .*({told})", str(error.value))


@pytest.mark.parametrize("image_size", [[16, 2**33], [2**33, 2**33]])
def test_a_card_whose_model_would_not_fit_any_memory(image_size, four, tensors, tmp_path):
    architecture = dataclasses.asdict(four.model().architecture) | {"image_size": image_size}
    metadata = {"convit_jax": json.dumps({"architecture": architecture})}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=r"x\.safetensors: "):
        open_weights(tmp_path / "x.safetensors").model()


@pytest.mark.parametrize("card", ["5", "[]", "null", '"x"', "", "[" * 10_000])
def test_a_card_of_another_json_type(card, tensors, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"convit_jax": card})
    with pytest.raises(InputError, match=r"x\.safetensors: its card cannot be read"):
        open_weights(path)


@pytest.mark.parametrize("metrics", ["5", "[]", '{"accuracy": "x"}', '{"accuracy": NaN}', "{"])
def test_metrics_of_any_form_do_not_stop_a_checkpoint(metrics, four, tmp_path):
    for step in ("1", "2"):
        path = new_path(str(tmp_path / "run" / "checkpoints" / step))
        write_weights(four, path, four.architecture())
    place = tmp_path / "run" / "checkpoints" / "1" / "metrics"
    place.mkdir()
    (place / "metrics").write_text(metrics)
    assert same(open_weights(tmp_path / "run"), four.tensors)


@pytest.mark.parametrize(
    "card", ["5", "{}", '{"architecture": {"num_heads": 4}}', '{"architecture": {"num_heads": 9}}']
)
def test_a_checkpoint_whose_card_is_another_models(card, four, tmp_path):
    path = new_path(str(tmp_path / "there"))
    write_weights(four, path, four.architecture())
    (path / "card" / "metadata").write_text(card)
    with pytest.raises(InputError, match=r"checkpoint .*there (is damaged|does not say)"):
        open_weights(path)


# W12
@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".bin", marks=torch_only)])
def test_a_model_in_shards(suffix, tensors, save, tmp_path):
    import torch

    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    places = {}
    for i in range(3):
        file = f"{stem}-0000{i}-of-00003{suffix}"
        part = {name: tensors[name] for name in sorted(tensors)[i::3]}
        places |= dict.fromkeys(part, file)
        if suffix == ".safetensors":
            safetensors.numpy.save_file(part, tmp_path / file)
        else:
            torch.save({name: save.T[name] for name in part}, tmp_path / file)
    index = tmp_path / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert same(open_weights(tmp_path), tensors)
    assert same(open_weights(index), tensors)
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
def test_an_index_that_leads_elsewhere(index, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path.parent / "x.safetensors").write_bytes(safetensors_file({"x": ("F32", [1])}))
    with pytest.raises(InputError, match=r"index\.json (is no index|names the shard)"):
        open_weights(tmp_path)


def test_a_file_by_a_link_is_read_with_what_lies_beside_the_link(tensors, tmp_path):
    """As in the Hub's cache, where names are links to files named by their content."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "blobs" / "0123abcd")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123abcd")
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps(timm_config()))
    weights = open_weights(tmp_path / "snapshot" / "model.safetensors")
    assert weights.card.mean == (0.5, 0.5, 0.5)


# W13
@torch_only
def test_a_written_pth_holds_nothing_of_the_machine(four, tmp_path):
    contents = []
    for place in (tmp_path / "a.pth", tmp_path / "there" / "b.pth"):
        write_weights(four, new_path(str(place)), four.architecture())
        contents.append(place.read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        assert {name.partition("/")[0] for name in file.namelist()} == {"archive"}


# Faults of the machine
@pytest.mark.parametrize("number", [13, 24, 12, 5])
def test_a_fault_of_the_machine_is_no_damage(number, tensors, tmp_path, monkeypatch):
    import os

    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")

    def fail(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("etils.epath.gpath._GPath.read_bytes", fail)
    with pytest.raises(MachineError, match=r"x\.safetensors: "):
        open_weights(tmp_path / "x.safetensors")
