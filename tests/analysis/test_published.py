import pytest

from convit_jax.analysis import known_dataset, published
from convit_jax.data.sources import imagenet
from convit_jax.models import list_models


class Folder:
    """A source with only class names and length."""

    def __init__(self, class_names, length):
        self.class_names, self._length = class_names, length

    def __len__(self):
        return self._length


IMAGENET = Folder(imagenet.class_ids(), 50_000)


@pytest.mark.parametrize(
    ("name", "classes_of", "known"),
    [
        ("tfds:imagenet2012:validation", None, "imagenet2012"),
        ("tfds:imagenet2012:validation:gs://bucket/data", None, "imagenet2012"),
        ("tfds:imagenet2012:train", None, ""),
        ("tfds:imagenet2012:validation[:100]", None, ""),
        ("tfds:imagenet_v2/matched-frequency:test", None, "imagenet_v2"),
        ("tfds:imagenet_v2/topimages:test", None, ""),
        ("tfds:imagenet_a:test", None, "imagenet_a"),
        ("tfds:imagenet2012:validation", "tfds:imagenet_r:test", "imagenet_r clean"),
        ("folder:/imagenet/val", None, "imagenet2012"),
        ("digits:test", None, ""),
    ],
)
def test_known_dataset(name, classes_of, known):
    assert known_dataset(name, IMAGENET, classes_of) == known


def test_folder_with_part_of_imagenet_is_not_imagenet():
    assert known_dataset("folder:/x", Folder(imagenet.class_ids(), 49_999), None) == ""
    assert known_dataset("folder:/x", Folder(("a", "b"), 50_000), None) == ""


def test_all_models_have_a_published_result_on_imagenet():
    for name in list_models():
        assert 70 < published(name, "imagenet2012").top1 < 84


def test_values_of_the_published_tables():
    tiny = published("convit_tiny", "imagenet2012")
    assert (tiny.top1, tiny.top5, tiny.loss) == (73.116, 91.710, 1.172)
    assert published("convit_tiny", "imagenet2012", ("position", 5)).top1 == 53.1
    assert published("deit_tiny", "imagenet2012", ("pos_embed", 0)).top1 == 38.3
    assert published("convit_tiny", "imagenet2012", ("position", 4)) is None
    assert published("convit_small", "imagenet_a", ("pos_embed", 0)) is None
    assert published("convit_base", "imagenet_r clean").top5 == 99.120
    assert published("convit_base", "") is None
