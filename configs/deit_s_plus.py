"""DeiT-S+ on ImageNet, as in the paper: 48M parameters, 79.0 % top-1, 94.4 % top-5 (Table 1).

    python train.py --config configs/deit_s_plus.py --workdir gs://BUCKET/deit_s_plus

300 epochs, batch 512, learning rate 4e-4. The paper does not state the number of GPUs.
Arguments, as in configs/deit_s_plus.py:fraction=0.1, are described in configs/imagenet.py.
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("deit_small_plus", argument)
