"""ConViT-S on ImageNet, as in the paper: 27M parameters, 81.3 % top-1, 95.7 % top-5 (Table 1).

    python train.py --config configs/convit_s.py --workdir gs://BUCKET/convit_s

300 epochs, batch 1024, learning rate 1e-3. The paper does not state the number of GPUs.
Arguments, as in configs/convit_s.py:fraction=0.1, are described in configs/imagenet.py.

With fraction=0.05, 0.1, 0.3, 0.5: 47.8, 59.6, 73.7, 78.2 % top-1 (Table 2).
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("convit_small", argument)
