"""Draws a contact sheet of training images, as a config augments them:

    python -m convit_jax.preview --config configs/convit_s.py --config.data.train=folder:MY_IMAGES

The upper half is what the host makes of them, the lower the same images as the model sees them,
with what the device adds: random erasing, mixup or CutMix. Below each stands its class, or its
classes with their shares.
"""

import dataclasses
import sys
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from convit_jax import data
from convit_jax.console import command_line
from convit_jax.errors import InputError
from convit_jax.system.devices import find_devices
from convit_jax.system.paths import output_file
from convit_jax.system.whole_file import write_whole
from convit_jax.training import Experiment, make_experiment, open_training_examples
from convit_jax.training.experiment import MAX_STEPS
from convit_jax.training.step import augment, split_step_key, step_key

_OUT = flags.DEFINE_string("out", "sheet.png", "Where the sheet is written: a .png or .jpg file.")
_STEP = flags.DEFINE_integer("step", 0, "Which step's batch, from 0.")
_IMAGES = flags.DEFINE_integer("images", 24, "How many images, from the batch's first.")

# Pixels between pictures and for a caption.
_GAP, _CAPTION = 4, 12
_COLUMNS = 6
# What Pillow calls the kinds of files that are written.
_KINDS = {".png": "png", ".jpg": "jpeg"}


def contact_sheet(
    experiment: Experiment, source: data.Source, *, step: int, count: int
) -> Image.Image:
    """The first images of a step's batch, before and after the device's part.

    Args:
        experiment: the config put together.
        source: the training examples.
        step: which batch, from 0.
        count: images, an even number up to the batch size.
    """
    batch = next(
        data.train_batches(
            source,
            experiment.order,
            experiment.train_transform,
            start_step=step,
            num_steps=step + 1,
            reading=data.Reading(
                max_broken=experiment.config.data.max_broken,
                exif_rotation=experiment.config.data.exif_rotation,
            ),
        )
    )
    host, labels = batch["image"][:count], batch["label"][:count]
    device, shares = _on_device(experiment, host, labels, step)
    names = source.class_names
    above = _grid(host, [names[label] for label in labels])
    below = _grid(device, [_shares_in_words(row, names) for row in shares])
    sheet = Image.new("RGB", (above.width, above.height + below.height + 4 * _GAP), "white")
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height + 4 * _GAP))
    return sheet


def _on_device(
    experiment: Experiment, images: np.ndarray, labels: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8, after erasing and mixing, and the share that each class has in each."""
    config = dataclasses.replace(experiment.step_config, label_smoothing=0.0)
    mean, std = jnp.array(config.mean), jnp.array(config.std)
    _, *keys = split_step_key(step_key(config.seed, step))
    floats, shares = augment({"image": images, "label": labels}, config, *keys)
    pixels = jnp.clip((floats * std + mean) * 255, 0, 255).round().astype(jnp.uint8)
    return np.asarray(pixels), np.asarray(shares)


def _shares_in_words(shares: np.ndarray, names: Sequence[str]) -> str:
    """`cat`, or `cat 70 dog 30`."""
    present = [label for label in np.argsort(-shares) if shares[label] > 0.005]
    if len(present) == 1:
        return names[present[0]]
    return " ".join(f"{names[label]} {100 * shares[label]:.0f}" for label in present)


def _grid(images: np.ndarray, captions: Sequence[str]) -> Image.Image:
    _, height, width, channels = images.shape
    # Small images are shown larger, so that captions fit.
    zoom = max(1, 64 // width)
    cell = (width * zoom + _GAP, height * zoom + _CAPTION + _GAP)
    columns, rows = min(_COLUMNS, len(images)), -(-len(images) // _COLUMNS)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = place % columns * cell[0], place // columns * cell[1]
        picture = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
        size = (width * zoom, height * zoom)
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (x, y))
        fitting = max(1, cell[0] // 6)  # letters of the default font are six pixels wide
        draw.text((x, y + size[1]), caption[:fitting], fill="black")
    return sheet


def main(argv: Sequence[str]) -> int:
    """Reads the config and the images, and writes the sheet."""
    if {"--help", "-h", "-help"} & set(argv):
        print(f"{__doc__}\nFlags: --config, --config.key=value (train.py --help lists them), and\n")
        for flag in (_OUT, _STEP, _IMAGES):
            print(f"--{flag.name}: {flags.FLAGS[flag.name].help} (default {flag.default})")
        return 0
    overrides = command_line.parse(argv)
    config = command_line.read_config(overrides)
    count = _IMAGES.value
    if not 2 <= count <= config.batch_size or count % 2:
        raise InputError(f"--images={count}: expected an even number up to {config.batch_size}")
    if not 0 <= _STEP.value < MAX_STEPS:
        raise InputError(f"--step={_STEP.value}: expected 0 or more, below {MAX_STEPS}")
    if not _OUT.value.lower().endswith(tuple(_KINDS)) or _OUT.value.startswith("gs://"):
        raise InputError(f"--out={_OUT.value}: expected a .png or .jpg file on this machine")
    out = output_file(_OUT.value, "--out")
    find_devices()
    source = open_training_examples(config)
    experiment = make_experiment(
        config, num_examples=len(source), num_classes=len(source.class_names)
    )
    sheet = contact_sheet(experiment, source, step=_STEP.value, count=count)
    kind = _KINDS[out.name.lower()[-4:]]
    write_whole(out, lambda file: sheet.save(file, kind))
    print(f"{out}: {count} images of step {_STEP.value}, {sheet.width}x{sheet.height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run("preview", lambda: main(sys.argv)))
