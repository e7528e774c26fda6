"""Models by name with released or other weights, adapted to classes, channels and image size."""

import hashlib

import numpy as np
import pytest
from flax import nnx

import convit_jax
from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.weights import open_weights
from convit_jax.weights.channels import adapt_channels
from convit_jax.weights.released import released_weights

# The architecture of the reference weights.
FOUR_HEADS = {"head_dim": 8, "depth": 4, "gpsa_layers": 3, "image_size": 96}


@pytest.fixture
def create(reference_data):
    """A function of options that creates a model with the reference weights."""

    def make(**options):
        weights = str(reference_data / "four_heads.safetensors")
        fields = FOUR_HEADS | {"num_classes": 10} | options
        return convit_jax.create_model("convit_tiny", pretrained=weights, **fields)

    return make


def test_weights_that_fit_are_used_unchanged(create, assert_agrees):
    assert_agrees(create())
    assert create(drop_path_rate=0.1).architecture.drop_path_rate == 0.1


def test_another_number_of_classes_gets_a_new_head(create, four_heads, package_log):
    model = create(num_classes=5, seed=1)
    assert model.head.kernel.shape == (32, 5)
    fresh = models.create_model("convit_tiny", 5, seed=1, **FOUR_HEADS)
    np.testing.assert_allclose(model.head.kernel[...], fresh.head.kernel[...], rtol=1e-5)
    other = create(num_classes=5, seed=2).head.kernel[...]
    assert np.abs(other - fresh.head.kernel[...]).max() > 1e-3
    norm = four_heads.tensors["norm.weight"]
    np.testing.assert_array_equal(model.norm.scale[...], norm)
    assert "the head for 10 classes is replaced by a new one for 5" in package_log.text


def test_grey_images_give_what_equal_channels_gave(create, package_log):
    """Timm's rule: the sum over the channels."""
    image = np.random.default_rng(0).normal(size=(2, 96, 96, 1)).astype(np.float32)
    expected = create()(np.repeat(image, 3, axis=-1))
    np.testing.assert_allclose(create(in_chans=1)(image), expected, atol=2e-5)
    assert "the patch kernel for 3 channels is summed over them, for 1" in package_log.text


def test_more_channels_take_the_kernels_in_turn():
    kernel = np.random.default_rng(0).normal(size=(8, 3, 2, 2)).astype(np.float32)
    for channels, order in ((2, [0, 1]), (4, [0, 1, 2, 0]), (6, [0, 1, 2] * 2)):
        expected = kernel[:, order] * 3 / channels
        np.testing.assert_allclose(adapt_channels(kernel, channels), expected, rtol=1e-6)
    np.testing.assert_array_equal(adapt_channels(kernel, 3), kernel)


def test_positions_are_resampled_for_another_image_size(create, reference_data):
    path = reference_data / "four_heads.safetensors"
    expected = convit_jax.load_model(path, image_size=128).pos_embed[...]
    assert expected.shape == (1, 64, 32)
    fields = {name: value for name, value in FOUR_HEADS.items() if name != "image_size"}
    for spelling in ("image_size", "img_size"):
        model = convit_jax.create_model(
            "convit_tiny", 10, pretrained=str(path), **fields, **{spelling: 128}
        )
        np.testing.assert_array_equal(model.pos_embed[...], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"depth": 5},
            "four_heads.safetensors: the weights do not fit the model; missing: blocks.4",
        ),
        ({"num_heads": 9}, "the weights have 4 heads per layer, the model has 9"),
        ({"in_channels": 0}, "in_channels=0: expected at least 1"),
        ({"in_chans": 1, "in_channels": 1}, "in_chans and in_channels are the same field"),
        ({"img_size": 96}, "img_size and image_size are the same field"),
        ({"pretrained_cfg": {}}, "models have no field 'pretrained_cfg'"),
        ({"embed_dim": 192}, "models have no field 'embed_dim'"),
    ],
)
def test_what_does_not_fit_is_an_input_error(create, options, message):
    with pytest.raises(InputError, match=message):
        create(**options)


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("convit_small", "hf://timm/convit_small.fb_in1k"),
        ("convit_small.fb_in1k", "hf://timm/convit_small.fb_in1k"),
        ("deit_tiny", "hf://timm/deit_tiny_patch16_224.fb_in1k"),
        ("deit_tiny_patch16_224", "hf://timm/deit_tiny_patch16_224.fb_in1k"),
        ("deit_base_patch16_224.fb_in1k", "hf://timm/deit_base_patch16_224.fb_in1k"),
    ],
)
def test_released_weights_are_found_by_our_names_and_timms(name, location):
    assert released_weights(name) == location


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convit_smal", "no model is called 'convit_smal': did you mean 'convit_small'"),
        ("convit_small.in22k", "did you mean 'convit_small.fb_in1k'"),
        ("vit_tiny_patch16_224", "did you mean 'deit_tiny_patch16_224'"),
        ("convit_tiny_plus", "convit_tiny_plus: its weights were not released, only those of conv"),
    ],
)
def test_a_name_without_weights_is_an_input_error(name, message):
    with pytest.raises(InputError, match=message):
        convit_jax.create_model(name, pretrained=True)


def test_a_models_name_stands_for_its_released_weights(hub, reference_data, assert_agrees):
    hub("timm/convit_tiny.fb_in1k", reference_data / "four_heads.safetensors")
    for name in ("convit_tiny", "convit_tiny.fb_in1k"):
        assert_agrees(convit_jax.load_model(name))
    model = convit_jax.create_model("convit_tiny", 10, pretrained=True, **FOUR_HEADS)
    assert_agrees(model)


def test_a_file_of_a_models_name_has_precedence(hub, reference_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "convit_tiny").mkdir()
    weights = (reference_data / "four_heads.safetensors").read_bytes()
    (tmp_path / "convit_tiny" / "model.safetensors").write_bytes(weights)
    assert open_weights("convit_tiny").directory is None
    assert open_weights("convit_tiny").num_classes() == 10


def test_without_a_network_the_cache_and_the_way_around_are_named(hub, reference_data):
    hub("timm/convit_tiny.fb_in1k", reference_data / "four_heads.safetensors")
    expected = (
        r"the cache has hf://timm/convit_tiny.fb_in1k; without a network, copy model.safetensors "
        r"and config.json of https://huggingface.co/timm/convit_small.fb_in1k into a directory"
    )
    with pytest.raises(InputError, match=expected):
        convit_jax.load_model("convit_small")


def test_a_damaged_download_is_refused_and_removed(hub, reference_data, tmp_path, monkeypatch):
    import huggingface_hub

    content = (reference_data / "four_heads.safetensors").read_bytes()
    etags = iter([hashlib.sha256(content[:-1]).hexdigest(), hashlib.sha256(content).hexdigest()])
    file = tmp_path / "model.safetensors"

    def download(repository, name):
        if name != "model.safetensors":
            raise huggingface_hub.errors.EntryNotFoundError(name)
        file.write_bytes(content)
        return str(file)

    metadata = type("Metadata", (), {})

    def get_metadata(address, timeout):
        metadata.etag = next(etags) if address.endswith("safetensors") else None
        return metadata

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", get_metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError, match=r"model\.safetensors was damaged on the way: its SHA-256"):
        convit_jax.load_model("convit_tiny")
    assert not file.exists()
    assert convit_jax.load_model("convit_tiny").architecture.num_classes == 10


def test_a_head_of_other_classes_is_refused_with_both_numbers(reference_data):
    with pytest.raises(
        InputError, match="num_classes=5: the weights have 10 classes; for a new head"
    ):
        convit_jax.load_model(reference_data / "four_heads.safetensors", num_classes=5)
    model = convit_jax.load_model(reference_data / "four_heads.safetensors", in_chans=1)
    assert nnx.state(model.patch_embed)["kernel"].shape[0] == 16 * 16
