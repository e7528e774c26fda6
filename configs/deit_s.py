"""DeiT-S on ImageNet, as in the paper: 22M parameters, 79.8 % top-1 (Table 1).

    python train.py --config configs/deit_s.py --workdir gs://BUCKET/deit_s

300 epochs, batch 1024, learning rate 1e-3. The paper does not state the number of GPUs.
Arguments, as in configs/deit_s.py:fraction=0.1, are described in configs/imagenet.py.

With fraction=0.05, 0.1, 0.3, 0.5: 34.8, 48.0, 66.1, 74.6 % top-1 (Table 2).
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("deit_small", argument)
