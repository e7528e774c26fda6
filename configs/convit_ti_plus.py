"""ConViT-Ti+ on ImageNet, as in the paper: 10M parameters, 76.7 % top-1, 93.6 % top-5 (Table 1).

    python train.py --config configs/convit_ti_plus.py --workdir gs://BUCKET/convit_ti_plus

300 epochs, batch 512, learning rate 4e-4. The paper does not state the number of GPUs.
Arguments, as in configs/convit_ti_plus.py:fraction=0.1, are described in configs/imagenet.py.

With cifar100: 82.1 % top-1 (App. C, after an unstated number of epochs).
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("convit_tiny_plus", argument)
