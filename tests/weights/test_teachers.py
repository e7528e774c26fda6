"""Opening teachers: weights and programs, images of other sizes and normalisations, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import convit_jax
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.errors import InputError
from convit_jax.weights.exporting import export_logits
from convit_jax.weights.teachers import open_teacher

INPUTS = Preprocessing((8, 8), 1.0, (0.3,), (0.4,))
IMAGES = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)


def open_for(name, inputs=INPUTS):
    return open_teacher(str(name), inputs, dtype="float32", mesh=None)


def predict(teacher, images):
    return jax.jit(teacher.predict)(teacher.params, images)


@pytest.fixture(scope="module")
def model(workdir):
    return convit_jax.load_model(workdir)


@pytest.fixture(scope="module")
def program(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "teacher.stablehlo"
    path.write_bytes(export_logits(model))
    return path


def test_weights_and_their_program_are_the_same_teacher(model, workdir, program):
    expected = model((IMAGES - 0.3) / 0.4)
    for name in (workdir, program):
        teacher = open_for(name)
        np.testing.assert_allclose(predict(teacher, (IMAGES - 0.3) / 0.4), expected, atol=1e-5)
        assert teacher.num_classes == 10
        # Attention in two products here and in one there.
        assert teacher.forward_flops() == pytest.approx(open_for(workdir).forward_flops(), rel=0.2)
        assert open_for(name).digest == teacher.digest
    assert open_for(program).digest != open_for(workdir).digest


def test_a_model_gets_images_of_its_own_normalisation_and_size(model, workdir, package_log):
    package_log.set_level("INFO")
    teacher = open_for(workdir, Preprocessing((16, 12), 1.0, (0.1,), (0.2,)))
    images = np.random.default_rng(0).random((3, 16, 12, 1), np.float32)
    resized = jax.image.resize(images, (3, 8, 8, 1), "cubic")
    expected = model((resized - 0.3) / 0.4)
    np.testing.assert_allclose(predict(teacher, (images - 0.1) / 0.2), expected, atol=1e-5)
    for note in ("images normalised by its own mean and std", "from 16x12 to its 8x8 pixels"):
        assert f"the teacher {workdir} gets " in package_log.text
        assert note in package_log.text


def write_program(path, function, shape, dtype=jnp.float32, **options):
    image = jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)
    path.write_bytes(export.export(jax.jit(function), **options)(image).serialize())


def test_a_program_of_any_size_gets_the_images_as_they_are(tmp_path):
    path = tmp_path / "any.stablehlo"
    write_program(path, lambda x: x.mean((1, 2)) * jnp.array([1.0, 2.0]), "b, h, w, 1")
    teacher = open_for(path)
    means = IMAGES.mean((1, 2))
    np.testing.assert_allclose(predict(teacher, IMAGES), means * [1, 2], rtol=1e-5)
    assert 64 < teacher.forward_flops() < 1000


def sums(x):
    return x.reshape(x.shape[0], -1).astype(jnp.float32)[:, :2]


@pytest.mark.parametrize(
    ("shape", "options", "function", "message"),
    [
        ("b, 8, 8, 1", {"dtype": jnp.uint8}, sums, "takes uint8 .*: expected one from normalised"),
        ("b, 64", {}, sums, r"takes float32\[b,64\] and gives .*: expected one from normalised"),
        ("b, 8, 8, 1", {}, lambda x: (sums(x), sums(x)), r"float32\[b,2\], float32\[b,2\]: exp"),
        ("4, 8, 8, 1", {}, sums, r"takes float32\[4,8,8,1\] .*: expected a program for batches of"),
        ("b, 8, 8, 3", {}, sums, "takes images of 3 channels, the model of 1: expected the same"),
        ("b, 8, 8, 1", {"platforms": ("tpu",)}, sums, "exported for tpu: expected .* for cpu"),
        ("b, 8, 5*w, 1", {}, sums, "does not take images of 8x8 pixels: "),
    ],
)  # fmt: skip
def test_programs_that_cannot_be_teachers_are_refused(shape, options, function, message, tmp_path):
    path = tmp_path / "x.stablehlo"
    write_program(path, function, shape, **options)
    with pytest.raises(InputError, match=message):
        open_for(path)


def test_weights_that_cannot_be_teachers_are_refused(workdir, program):
    with pytest.raises(InputError, match="takes images of 1 channels, the model of 3"):
        open_for(workdir, Preprocessing((8, 8)))
    cut = program.with_name("cut.stablehlo")
    cut.write_bytes(program.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut\.stablehlo cannot be read"):
        open_for(cut)
