"""Draw a contact sheet of training images as a config augments them:

    python -m convit_jax.preview --config configs/convit_s.py --config.data.train=folder:MY_IMAGES

The upper half shows the host's output, the lower half the same images as the model sees them, after
the device's part: random erasing, mixup or CutMix. Captions give the class, or the classes with
their shares.
"""

import sys
from collections.abc import Sequence

from PIL import Image

from convit_jax import data
from convit_jax.console import command_line
from convit_jax.errors import InputError
from convit_jax.system.devices import find_devices
from convit_jax.system.paths import output_file
from convit_jax.system.whole_file import write_whole
from convit_jax.training import Experiment, make_experiment, open_training_examples
from convit_jax.training.contact_sheet import GAP, augment_on_device, draw_grid, shares_in_words
from convit_jax.training.experiment import MAX_STEPS

_COLUMNS = 6
# Pillow's names of the file formats.
_FORMATS = {".png": "png", ".jpg": "jpeg"}


def contact_sheet(
    experiment: Experiment, source: data.Source, *, step: int, count: int
) -> Image.Image:
    """Draw the first images of a step's batch, before and after the device's part.

    Args:
        experiment: the experiment of the config.
        source: the training examples.
        step: which batch, from 0.
        count: images, an even number up to the batch size.
    """
    d = experiment.config.data
    batches = data.train_batches(
        source,
        experiment.order,
        experiment.train_transform,
        start_step=step,
        num_steps=step + 1,
        options=data.LoaderOptions(max_broken=d.max_broken, exif_rotation=d.exif_rotation),
    )
    batch = next(batches)
    host, labels = batch["image"][:count], batch["label"][:count]
    device, shares = augment_on_device(experiment, host, labels, step)
    names = source.class_names
    above = draw_grid(host, [names[label] for label in labels], _COLUMNS)
    below = draw_grid(device, [shares_in_words(row, names) for row in shares], _COLUMNS)
    sheet = Image.new("RGB", (above.width, above.height + below.height + 4 * GAP), "white")
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height + 4 * GAP))
    return sheet


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.preview", description=__doc__)
    command_line.add_config_flag(parser)
    parser.add_option("--out", "sheet.png", "the sheet, a .png or .jpg file", metavar="FILE")
    parser.add_option("--step", 0, "which step's batch, from 0", metavar="N")
    parser.add_option("--images", 24, "how many images, from the batch's first", metavar="N")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the config and the images, and write the sheet."""
    arguments, settings = command_line.parse(_parser(), argv)
    config = command_line.read_config(arguments, settings)
    count, step = arguments.images, arguments.step
    fits = 2 <= count <= config.batch_size and count % 2 == 0
    command_line.expect(arguments, "images", fits, f"an even number up to {config.batch_size}")
    within = 0 <= step < MAX_STEPS
    command_line.expect(arguments, "step", within, f"0 or more, below {MAX_STEPS}")
    if not arguments.out.lower().endswith(tuple(_FORMATS)) or arguments.out.startswith("gs://"):
        raise InputError(f"--out={arguments.out}: expected a .png or .jpg file on this machine")
    out = output_file(arguments.out, "--out")
    find_devices()
    source = open_training_examples(config)
    experiment = make_experiment(
        config, num_examples=len(source), num_classes=len(source.class_names)
    )
    sheet = contact_sheet(experiment, source, step=step, count=count)
    write_whole(out, lambda file: sheet.save(file, _FORMATS[out.name.lower()[-4:]]))
    print(f"{out}: {count} images of step {step}, {sheet.width}x{sheet.height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run("preview", main))
