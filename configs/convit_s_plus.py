"""ConViT-S+ on ImageNet, as in the paper: 48M parameters, 82.2 % top-1, 95.9 % top-5 (Table 1).

    python train.py --config configs/convit_s_plus.py --workdir gs://BUCKET/convit_s_plus

300 epochs, batch 512, learning rate 4e-4. The paper does not state the number of GPUs.
Arguments, as in configs/convit_s_plus.py:fraction=0.1, are described in configs/imagenet.py.

With ablation=a to g: 82.2, 82.0, 81.4, 81.6, 79.1, 78.6, 73.7 % top-1 (Table 3).
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("convit_small_plus", argument)
