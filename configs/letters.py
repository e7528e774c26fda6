"""Letters of unseen fonts, 20x20 pixels: harder than the digits, three minutes on two CPU cores.

    pip install --no-deps trdg==1.8.0
    python train.py --config configs/letters.py --workdir /tmp/letters
    python train.py --config configs/letters.py:deit --workdir /tmp/letters-deit

`deit` trains a DeiT of the same width, depth, data and budget, with plain attention; other models
are in `MODELS` in configs/digits.py. With seeds 0, 1 and 2 the ConViT ended at 91.7, 89.9 and
89.4 % of the 1,716 test images, the DeiT at 80.1, 78.5 and 76.3 %; a nearest neighbour has 54.7 %.
How the learning rates were chosen, and more results: docs/comparison.md.
"""

import ml_collections

from configs.digits import small_recipe

# The best of three or four for each model, on held-out training letters (docs/comparison.md).
LEARNING_RATES = {
    "convit": 3e-3,
    "convit_no_gating": 1e-3,
    "convit_no_conv_init": 1e-3,
    "deit": 1e-3,
    "deit_mimetic": 3e-3,
    "deit_impulse": 3e-3,
}


def get_config(variant: str = "convit") -> ml_collections.ConfigDict:
    """Return the experiment; `variant` is one of `MODELS` in configs/digits.py."""
    config = small_recipe("letters", variant, LEARNING_RATES)
    config.train_for = "4000 steps"
    config.eval_batch_size = 576  # the test images in three steps
    config.eval_every = "1000 steps"
    config.checkpoint.every = "2000 steps"

    config.model.patch_size = 4
    config.data.image_size = (20,)  # stored with 28; 25 patches
    config.data.mean = (0.114,)
    config.data.std = (0.263,)
    config.augment.rotate = 15.0
    return config
