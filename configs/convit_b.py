"""ConViT-B on ImageNet, as in the paper: 86M parameters, 82.4 % top-1, 95.9 % top-5 (Table 1).

    python train.py --config configs/convit_b.py --workdir gs://BUCKET/convit_b

300 epochs, batch 1024, learning rate 1e-3; the released code used 16 GPUs with 64 images each.
Arguments, as in configs/convit_b.py:fraction=0.1, are described in configs/imagenet.py.
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("convit_base", argument)
