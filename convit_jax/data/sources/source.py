"""An opened dataset, or the part of it that a run uses."""

import dataclasses

import numpy as np

from convit_jax.data.sources.records import ImageFiles, TFExamples


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Random access to labelled images.

    Attributes:
        name: what it was opened by.
        examples: all examples of the dataset.
        class_names: the name of each label.
        chosen: int64, the examples that are used, in order; None for all.
        label_map: int32, the label to give for each of the dataset's; None for its own.
    """

    name: str
    examples: TFExamples | ImageFiles
    class_names: tuple[str, ...]
    chosen: np.ndarray | None = None
    label_map: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.examples) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        """The encoded image and its label, or where it may have several, marks of 0 and 1.

        Raises:
            ValueError: the label is none of the dataset's.
        """
        image, label = self.examples[self._original(index)]
        if self.label_shape:
            return image, label
        labels = len(self.class_names if self.label_map is None else self.label_map)
        if not 0 <= label < labels:
            raise ValueError(f"its label is {label}, expected 0 to {labels - 1}")
        return image, label if self.label_map is None else int(self.label_map[label])

    @property
    def rotates_by_exif(self) -> bool:
        """Whether EXIF turns these images where nothing else is asked for.

        Photographs in folders are looked at as programs show them; datasets of TFDS are used as
        they are stored, as published accuracies were measured.
        """
        return isinstance(self.examples, ImageFiles)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """() where an image has one label, (classes,) where it may have several."""
        return self.examples.label_shape

    def describe(self, index: int) -> str:
        """What the image is called, for messages."""
        return self.examples.describe(self._original(index))

    def _original(self, index: int) -> int:
        return index if self.chosen is None else int(self.chosen[index])
