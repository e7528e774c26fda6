"""An opened dataset, or the part of it that a run uses."""

import dataclasses

import numpy as np

from convit_jax.data.sources.records import ImageFiles, TFExamples


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Random access to labelled images.

    Attributes:
        name: the name by which it was opened.
        examples: all examples of the dataset.
        class_names: the name of each label.
        indices: int64, the examples that are used, in order; None for all.
        label_map: int32, maps the dataset's labels to those returned; None for the identity.
    """

    name: str
    examples: TFExamples | ImageFiles
    class_names: tuple[str, ...]
    indices: np.ndarray | None = None
    label_map: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.examples) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        """Return the encoded image and its label: an int, or int32 [num_classes] if multi-hot.

        Raises:
            ValueError: the label is not one of the dataset's.
        """
        image, label = self.examples[self._example_index(index)]
        if self.label_shape:
            return image, label
        num_labels = len(self.class_names if self.label_map is None else self.label_map)
        if not 0 <= label < num_labels:
            raise ValueError(f"its label is {label}, expected 0 to {num_labels - 1}")
        return image, label if self.label_map is None else int(self.label_map[label])

    @property
    def rotates_by_exif(self) -> bool:
        """Whether images are rotated by their EXIF orientation unless configured otherwise.

        Photographs in folders are rotated, as image viewers do; TFDS datasets are not, as
        published accuracies were measured without rotation.
        """
        return isinstance(self.examples, ImageFiles)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """() for one label per image, (num_classes,) for multi-hot labels."""
        return self.examples.label_shape

    def describe(self, index: int) -> str:
        """Return where the image is, for messages."""
        return self.examples.describe(self._example_index(index))

    def _example_index(self, index: int) -> int:
        return index if self.indices is None else int(self.indices[index])
