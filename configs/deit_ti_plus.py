"""DeiT-Ti+ on ImageNet, as in the paper: 10M parameters, 75.9 % top-1, 93.2 % top-5 (Table 1).

    python train.py --config configs/deit_ti_plus.py --workdir gs://BUCKET/deit_ti_plus

300 epochs, batch 512, learning rate 4e-4. The paper does not state the number of GPUs.
Arguments, as in configs/deit_ti_plus.py:fraction=0.1, are described in configs/imagenet.py.
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("deit_tiny_plus", argument)
