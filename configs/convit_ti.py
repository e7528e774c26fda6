"""ConViT-Ti on ImageNet, as in the paper: 6M parameters, 73.1 % top-1, 91.7 % top-5 (Table 1).

    python train.py --config configs/convit_ti.py --workdir gs://BUCKET/convit_ti

300 epochs, batch 1024, learning rate 1e-3; the released code used 4 GPUs with 256 images each.
Arguments, as in configs/convit_ti.py:fraction=0.1, are described in configs/imagenet.py.
"""

import ml_collections

from configs.imagenet import deit_recipe


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described in configs/imagenet.py."""
    return deit_recipe("convit_tiny", argument)
