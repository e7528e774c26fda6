"""DeiT-B+ on ImageNet, as in the paper: 152M parameters, 77.5 % top-1, 93.5 % top-5 (Table 1).

    python train.py --config configs/deit_b_plus.py --workdir gs://BUCKET/deit_b_plus

300 epochs, batch 512, learning rate 4e-4. The paper does not state the number of GPUs.
Arguments, as in configs/deit_b_plus.py:fraction=0.1, are described in configs/imagenet.py.
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("deit_base_plus", argument)
