"""Letters of unseen fonts, 28x28 pixels: harder than the digits, three minutes on two CPU cores.

    pip install --no-deps trdg==1.8.0
    python train.py --config configs/letters.py --workdir /tmp/letters
    python train.py --config configs/letters.py:deit --workdir /tmp/letters-deit

`deit` trains a DeiT of the same width, depth, data and budget, with plain attention. With seed 0
the ConViT ended at 86.0 % of the 1,716 test images, the DeiT, whose accuracy rises until
the end, at 44.6 %; a nearest neighbour has 54.7 %. The learning rate is the better of two for
both models, on held-out training images (docs/data.md).
"""

import ml_collections

from convit_jax.config import template
from convit_jax.errors import InputError, nearest


def get_config(variant: str = "convit") -> ml_collections.ConfigDict:
    """Return the experiment; `variant` is convit or deit."""
    if variant not in ("convit", "deit"):
        raise InputError(f"configs/letters.py:{variant}: {nearest(variant, ('convit', 'deit'))}")
    config = template()
    config.train_for = "2000 steps"
    config.batch_size = 64
    config.eval_batch_size = 576  # the test images in three steps
    config.eval_every = "500 steps"
    config.ema_decay = 0.998
    config.log_every = "50 steps"
    config.checkpoint.every = "1000 steps"

    config.model.name = f"{variant}_tiny"
    config.model.num_heads = 9
    config.model.head_dim = 8
    config.model.depth = 4
    if variant == "convit":
        config.model.gpsa_layers = 3
    config.model.drop_path_rate = 0.1
    config.model.patch_size = 4
    config.model.in_channels = 1

    config.data.train = "letters:train"
    config.data.eval = "letters:test"
    config.data.image_size = (28,)
    config.data.eval_crop = 1.0
    config.data.mean = (0.115,)
    config.data.std = (0.288,)

    config.augment.rotate = 15.0
    config.augment.zoom = 0.1
    config.augment.shear = 10.0
    config.augment.translate = 0.08
    config.augment.mixup = 0.2

    config.optimizer.learning_rate = 3e-3
    config.optimizer.learning_rate_batch = 64
    config.optimizer.weight_decay = 0.1
    return config
