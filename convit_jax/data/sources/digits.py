"""scikit-learn's handwritten digits as a TFDS dataset: real images without a download."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# The images are ordered by writer, so the first 1,400 and the last 397 are mostly by different
# writers: the test split measures generalisation to unseen handwriting.
TRAIN_IMAGES = 1400


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels, 1,400 to train on and 397 to test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # scikit-learn includes the images
        # scikit-learn is slow to import and only needed when the dataset is first written.
        from sklearn.datasets import load_digits  # noqa: PLC0415

        digits = load_digits()
        # Intensities range from 0 to 16.
        images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
        return {
            "train": self._generate_examples(images[:TRAIN_IMAGES], digits.target[:TRAIN_IMAGES]),
            "test": self._generate_examples(images[TRAIN_IMAGES:], digits.target[TRAIN_IMAGES:]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}
