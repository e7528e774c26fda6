import jax
import numpy as np
import pytest
from flax import nnx

from convit_jax import create_model
from convit_jax.errors import InputError
from convit_jax.weights import load_tensors, read_tensors, to_torch, torch_names
from tests.helpers import parameters_by_name

MODELS = {
    "four_heads": {
        "num_heads": 4, "head_dim": 8, "depth": 4, "gpsa_layers": 3, "num_classes": 10,
        "image_size": 96,
    },
    "nine_heads": {
        "num_heads": 9, "head_dim": 8, "depth": 4, "gpsa_layers": 2, "num_classes": 7,
        "image_size": 64,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def loaded(request, reference_data):
    """A model with the reference's weights, its tensors, and the reference's arrays."""
    model = nnx.jit(lambda: create_model("convit_tiny", **MODELS[request.param]))()
    tensors = read_tensors(reference_data / f"{request.param}.safetensors")
    load_tensors(model, tensors)
    with np.load(reference_data / f"{request.param}.npz") as arrays:
        return model, tensors, dict(arrays)


def assert_near(actual, reference):
    """Equal to within 1e-5 of the largest value."""
    actual = np.asarray(actual)
    assert actual.shape == reference.shape
    assert np.abs(actual - reference).max() < 1e-5 * np.abs(reference).max()


def test_patches_blocks_features_and_logits_agree_with_the_reference(loaded):
    model, _, reference = loaded
    trace = nnx.jit(lambda model, images: model.trace(images))(model, reference["images"])
    assert_near(trace.embedded - model.pos_embed[...], reference["patches"])
    for i, output in enumerate(trace.outputs):
        assert_near(output, reference[f"block_{i:02}"])
    assert_near(trace.features, reference["features"])
    assert_near(trace.logits, reference["logits"])


def test_every_gpsa_attention_map_agrees_with_the_reference(loaded):
    model, _, reference = loaded
    maps = nnx.jit(lambda model, images: model.attention_maps(images))(model, reference["images"])
    assert len(maps) == model.architecture.depth
    compared = [name for name in reference if name.startswith("attention_")]
    assert len(compared) == model.architecture.gpsa_layers
    for name in compared:
        assert_near(maps[int(name.removeprefix("attention_"))], reference[name])


def test_a_round_trip_through_our_names_is_bit_identical(loaded):
    model, tensors, _ = loaded
    params = {name: np.asarray(value) for name, value in parameters_by_name(model).items()}
    converted = to_torch(params, model.architecture)
    assert set(converted) == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(converted[name], tensor), name


def test_all_mismatches_are_listed_and_nothing_is_loaded(loaded):
    model, tensors, _ = loaded
    before = nnx.state(model)
    tensors = dict(tensors, surplus=np.zeros(3), cls_token=np.zeros((1, 1, 5)))
    del tensors["norm.weight"], tensors["blocks.0.attn.qk.weight"]
    width = model.architecture.width
    with pytest.raises(InputError) as error:
        load_tensors(model, tensors)
    message = str(error.value)
    assert "missing: blocks.0.attn.qk.weight, norm.weight" in message
    assert "unexpected: surplus" in message
    assert f"wrong shape: cls_token is (1, 1, 5), expected (1, 1, {width})" in message
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.state(model)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is a web page"),
        (None, "is not a whole"),
        (b"junk" * 9, "is not a whole"),
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(content, message, reference_data, tmp_path):
    path = tmp_path / "weights.safetensors"
    file_content = (reference_data / "four_heads.safetensors").read_bytes()
    path.write_bytes(file_content[: len(file_content) // 2] if content is None else content)
    with pytest.raises(InputError, match=message):
        read_tensors(path)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_tensors(tmp_path / "nothing.safetensors")


def test_converted_tensors_are_contiguous_arrays(loaded):
    """PyTorch and safetensors write an array's memory unchanged."""
    model, _, _ = loaded
    for name, tensor in to_torch(parameters_by_name(model), model.architecture).items():
        assert type(tensor) is np.ndarray, name
        assert tensor.flags.c_contiguous, name


def test_all_kinds_of_mismatches_are_listed_in_order(loaded):
    model, tensors, _ = loaded
    tensors = dict(tensors, b=np.zeros(3), a=np.zeros(3), cls_token=np.zeros((1, 1, 5)))
    del tensors["norm.weight"]
    width = model.architecture.width
    with pytest.raises(InputError) as error:
        load_tensors(model, tensors)
    assert str(error.value) == (
        "the weights do not fit the model; missing: norm.weight; unexpected: a, b; wrong shape: "
        f"cls_token is (1, 1, 5), expected (1, 1, {width})"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cls_token", True),
        ("blocks.11.attn.gating_param", True),
        ("blocks.3.attn.qk.weight", True),
        ("patch_embed.proj.bias", True),
        ("head.weight", True),
        ("module.cls_token", False),
        ("cls_token.weight", False),
        ("blocks.x.attn.qk.weight", False),
        ("blocks.3.attn.qk.running_mean", False),
        ("head_dist.weight", True),
        ("blocks.3.ls2.gamma", True),
        ("blocks.3.ls3.gamma", False),
        ("", False),
    ],
)
def test_is_parameter_knows_the_released_names(name, expected):
    assert torch_names.is_parameter(name) is expected


def test_a_parameter_without_a_rule_raises_key_error(loaded):
    model, _, _ = loaded
    with pytest.raises(KeyError, match="no rule for the parameter 'colour'"):
        to_torch({"colour": np.zeros(3)}, model.architecture)
