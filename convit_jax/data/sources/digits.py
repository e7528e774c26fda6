"""scikit-learn's handwritten digits as a TFDS dataset: real images that need no download."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# The images are in the order in which their writers were asked, so the first 1,400 and the last
# 397 are mostly by different hands: an honest test.
TRAIN_IMAGES = 1400


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels, 1,400 to train on and 397 to test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # scikit-learn carries the images
        # Imported here because scikit-learn is needed once, when the dataset is first written.
        from sklearn.datasets import load_digits  # noqa: PLC0415

        digits = load_digits()
        # Intensities are 0 to 16.
        images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
        first, last = slice(0, TRAIN_IMAGES), slice(TRAIN_IMAGES, None)
        return {
            "train": self._generate_examples(images[first], digits.target[first]),
            "test": self._generate_examples(images[last], digits.target[last]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}
