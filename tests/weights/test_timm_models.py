"""DeiT III and the distilled DeiT, compared with timm (scripts/make_timm_reference.py)."""

import json

import numpy as np
import pytest
import safetensors.numpy

import convit_jax
from convit_jax import analysis, convert, models
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.errors import InputError
from convit_jax.weights import (
    model_keys,
    named_model,
    nearest_model,
    open_weights,
    recognise,
    to_torch,
)
from convit_jax.weights.released import released_weights
from tests.helpers import abstract_parameters, random_parameters
from tests.weights.test_loading import released_layout

NAMES = ("timm_deit3", "timm_distilled")


@pytest.fixture(scope="module", params=NAMES)
def case(request, reference_data):
    """A name, the model, and timm's images, tokens, features and logits."""
    path = reference_data / f"{request.param}.safetensors"
    model = convit_jax.load_model(path, num_heads=2)
    with np.load(path.with_suffix(".npz")) as reference:
        arrays = {name: reference[name].astype(np.float32) for name in reference.files}
    return request.param, model, arrays


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_logits_tokens_and_features_are_timms(case):
    name, model, reference = case
    assert_close(model(reference["images"]), reference["logits"])
    assert_close(model.features(reference["images"]), reference["features"])
    (patches,) = model.feature_maps(reference["images"], layers=[-1], norm=True)
    assert_close(patches.reshape(2, 16, 32), reference["tokens"][:, -16:])
    separate = model.separate_logits(reference["images"])
    if name == "timm_distilled":
        assert_close(separate, reference["logits_of_each_head"])
    else:
        assert_close(separate[0], reference["logits"])


def test_the_rollout_begins_at_every_classified_token(case):
    _, model, reference = case
    flow = np.eye(reference["tokens"].shape[1])
    for layer in model.attention_maps(reference["images"]):
        flow = (np.asarray(layer[0], np.float64).mean(axis=0) + np.eye(len(flow))) / 2 @ flow
    expected = flow[: len(flow) - 16, -16:].mean(axis=0).reshape(4, 4)
    assert_close(model.attention_rollout(reference["images"])[0], expected)
    locality = analysis.measure_locality(model, reference["images"])
    maps = np.asarray(model.attention_maps(reference["images"])[0])
    share = maps[:, :, -16:, :-16].sum(axis=-1).mean(axis=(0, 2))
    assert_close(locality.to_class_token[0], share)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_written_with_timms_names_again(name, reference_data, tmp_path):
    source, checkpoint = reference_data / f"{name}.safetensors", tmp_path / "checkpoint"
    assert convert.main([str(source), str(checkpoint), "--override", "num_heads=2"]) == 0
    assert convert.main([str(checkpoint), str(tmp_path / "x.safetensors")]) == 0
    written = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    expected = safetensors.numpy.load_file(source)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[n], expected[n].astype(np.float32)) for n in expected)
    assert open_weights(tmp_path / "x.safetensors").architecture().num_heads == 2


def test_the_names_of_the_released_deit_iii_are_understood(reference_data, tmp_path):
    tensors = safetensors.numpy.load_file(reference_data / "timm_deit3.safetensors")
    renamed = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): array
               for n, array in tensors.items()}  # fmt: skip
    assert renamed.keys() != tensors.keys()
    safetensors.numpy.save_file(renamed, tmp_path / "x.safetensors")
    assert open_weights(tmp_path / "x.safetensors").tensors.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("head_dist.weight", "missing: head_dist.weight"),
        ("dist_token", "missing: dist_token"),
        ("blocks.1.ls2.gamma", r"missing: blocks\.1\.ls2\.gamma"),
    ],
)
def test_half_a_model_is_refused(missing, message, reference_data, tmp_path):
    name = "timm_deit3" if "ls2" in missing else "timm_distilled"
    tensors = safetensors.numpy.load_file(reference_data / f"{name}.safetensors")
    del tensors[missing]
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        convit_jax.load_model(tmp_path / "x.safetensors", num_heads=2)


def test_both_heads_are_new_for_other_classes(reference_data):
    fields = {"head_dim": 16, "num_heads": 2, "depth": 2, "patch_size": 8, "mlp_ratio": 2.0}
    weights = reference_data / "timm_distilled.safetensors"
    new = convit_jax.create_model("deit_tiny_distilled", 3, 32, pretrained=weights, **fields)
    assert new.head.kernel.shape == new.head_dist.kernel.shape == (32, 3)
    assert not np.array_equal(new.head.kernel[...], new.head_dist.kernel[...])
    headless = convit_jax.load_model(weights, num_classes=0, num_heads=2)
    with np.load(weights.with_suffix(".npz")) as reference:
        images = reference["images"].astype(np.float32)
        assert_close(headless(images), reference["features"])


def test_positions_are_resampled_without_those_of_the_two_tokens(reference_data):
    weights = open_weights(reference_data / "timm_distilled.safetensors")
    larger = weights.architecture(image_size=64, num_heads=2)
    positions = weights.tensors_for(larger)["pos_embed"]
    assert positions.shape == (1, 66, 32)
    np.testing.assert_array_equal(positions[:, :2], weights.tensors["pos_embed"][:, :2])


@pytest.mark.parametrize("name", ["deit_small_distilled", "deit3_medium"])
def test_they_are_recognised_and_not_taken_for_a_deit(name):
    architecture, tensors = released_layout(name, num_classes=37)
    assert recognise(tensors) == architecture
    assert nearest_model(tensors) == named_model(architecture) == name
    assert model_keys(architecture) == {"name": name}
    assert analysis.published(name, "imagenet2012") is None
    assert not analysis.is_published_preprocessing("deit3_small", Preprocessing())


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"architecture": "deit3_huge_patch14_224"}, 16),  # of 80 channels
        ({"architecture": "deit_tiny_patch16_224", "model_args": {"num_heads": 5}}, 5),
        ({"architecture": "deit_tiny_patch16_224"}, 20),  # another width: 64 channels are assumed
        ({"architecture": ["deit3_huge_patch14_224"], "model_args": 3}, 20),
    ],
)
def test_the_heads_are_taken_from_timms_config(config, heads, tmp_path):
    architecture = models.architecture("deit3_huge", depth=1, num_classes=2, mlp_ratio=0.01)
    params = random_parameters(architecture)
    safetensors.numpy.save_file(to_torch(params, architecture), tmp_path / "model.safetensors")
    content = {"pretrained_cfg": {"crop_pct": 0.9}} | config
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert open_weights(tmp_path).architecture().num_heads == heads


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("deit_tiny_distilled", "hf://timm/deit_tiny_distilled_patch16_224.fb_in1k"),
        ("deit3_small_patch16_224", "hf://timm/deit3_small_patch16_224.fb_in1k"),
        (
            "deit3_base_patch16_224.fb_in22k_ft_in1k",
            "hf://timm/deit3_base_patch16_224.fb_in22k_ft_in1k",
        ),
        ("deit3_huge", "hf://timm/deit3_huge_patch14_224.fb_in1k"),
    ],
)
def test_their_released_weights_are_found_by_name(name, location):
    assert released_weights(name) == location
    assert models.model_name(name) not in convit_jax.list_models()


def test_the_distillation_token_comes_with_the_class_token_after_gpsa():
    fields = {"depth": 2, "gpsa_layers": 1, "head_dim": 4, "patch_size": 8, "num_classes": 3}
    model = convit_jax.create_model("convit_tiny", image_size=16, distillation_token=True, **fields)
    trace = model.trace(np.ones((2, 16, 16, 3), np.float32))
    assert [x.shape[1] for x in trace.inputs] == [4, 6]
    np.testing.assert_array_equal(trace.inputs[1][0, 1], model.dist_token[0, 0])
    parameters = abstract_parameters("convit_tiny", distillation_token=True)
    assert parameters["pos_embed"].shape[1] == 196
    with pytest.raises(InputError, match="distillation_token=True: expected False if all layers"):
        models.architecture("convit_tiny", gpsa_layers=12, distillation_token=True)
    with pytest.raises(InputError, match=r"deit3_large has no GPSA layers.*use a ConViT"):
        models.architecture("deit3_large", gpsa_layers=2)
