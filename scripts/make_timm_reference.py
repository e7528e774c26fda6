"""Writes tests/data/timm_*: small random models of timm, and what timm computes with them.

    python scripts/make_timm_reference.py        # pip install timm==1.0.31, with PyTorch

Touvron et al.'s two other models, which timm implements independently: DeiT III (LayerScale; no
position of the class token) and the distilled DeiT (a second token and head). Weights and images
are float16 numbers, which halves the files; the arithmetic is float32.
"""

import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

DATA = pathlib.Path(__file__).parent.parent / "tests" / "data"
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
         "mlp_ratio": 2, "num_classes": 5, "class_token": True}  # fmt: skip


def main() -> None:
    """Write the files."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32).half().float()
    models = {
        "timm_deit3": VisionTransformer(**SIZES, no_embed_class=True, init_values=1e-4),
        "timm_distilled": VisionTransformerDistilled(**SIZES),
    }
    for name, model in models.items():
        state = {key: torch.randn_like(value).mul(0.3).half() for key, value in
                 model.eval().state_dict().items()}  # fmt: skip
        model.load_state_dict({key: value.float() for key, value in state.items()})
        save_file(state, DATA / f"{name}.safetensors")
        with torch.no_grad():
            tokens = model.forward_features(images)
            arrays = {
                "images": images.permute(0, 2, 3, 1).half(),
                "tokens": tokens,
                "features": model.forward_head(tokens, pre_logits=True),
                "logits": model(images),
            }
            if name == "timm_distilled":
                arrays["logits_of_each_head"] = torch.stack(
                    [model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])]
                )
        np.savez_compressed(
            DATA / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()}
        )


if __name__ == "__main__":
    main()
