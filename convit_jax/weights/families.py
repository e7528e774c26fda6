"""Other model families, recognised by tensor names that ConViT and DeiT do not have."""

import re
from collections.abc import Iterable

# (pattern, description), the most specific first; patterns match from the start of a name.
_FAMILIES = (
    (r"(vit|deit|beit|swin|dinov2)\.(embeddings|encoder)\.", "a model of transformers"),
    (r"embeddings\.cls_token$", "a model of transformers"),
    (r"(visual\.|text_projection$|token_embedding\.)", "a CLIP model"),
    (r"decoder_(embed|blocks|pos_embed)", "a masked autoencoder (MAE), which has no classifier"),
    (r"blocks_token_only\.", "a CaiT"),
    (r"(layers|stages)\.\d+\.blocks\.\d+\.attn\.relative_position_bias", "a Swin transformer"),
    (r"(blocks\.\d+\.attn\.(relative_position|q_bias|rel_pos)|rel_pos_bias\.)", "a BEiT"),
    (r"(reg_token|register_tokens)$", "a vision transformer with register tokens"),
    (r"(norm_pre|norm_pre_|ln_pre)\.", "a vision transformer of CLIP's kind"),
    (r"fc_norm\.", "a vision transformer that averages its patches before the head (fc_norm)"),
    (r"pre_logits\.", "a vision transformer with a layer before the head (pre_logits)"),
    (r"blocks\.\d+\.attn\.[qk]_norm\.", "a vision transformer with normalised queries and keys"),
    (r"blocks\.\d+\.mlp\.(w12|fc1_g|w1)\.", "a vision transformer with gated feed-forward layers"),
    (r"attn_pool\.", "a vision transformer with attention pooling"),
    (r"(conv_proj\.|encoder\.layers\.encoder_layer_0\.)", "torchvision's vision transformer"),
    (r"patch_embed\.backbone\.", "a vision transformer on a convolutional stem"),
    (r"mask_token$", "a masked pre-training model"),
    (r"layer1\.0\.conv1\.", "a ResNet"),
    (r"(stages\.\d+\.blocks\.\d+\.conv_dw|downsample_layers\.)", "a ConvNeXt"),
    (r"(conv_stem\.|features\.|stem\.)", "a convolutional network"),
)  # fmt: skip


def other_family(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the other family that tensors belong to and the tensor that shows it, or None."""
    names = list(names)
    for pattern, description in _FAMILIES:
        for name in names:
            if re.match(pattern, name):
                return description, name
    return None
