"""DeiT-B on ImageNet, as in the paper: 86M parameters, 81.8 % top-1 (Table 1).

    python train.py --config configs/deit_b.py --workdir gs://BUCKET/deit_b

300 epochs, batch 1024, learning rate 1e-3. The paper does not state the number of GPUs.
Arguments, as in configs/deit_b.py:fraction=0.1, are described in configs/imagenet.py.
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("deit_base", argument)
