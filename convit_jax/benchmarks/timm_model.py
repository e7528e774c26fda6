"""timm's PyTorch models at the same work, to compare with in one run."""

import importlib.util
from collections.abc import Iterable
from typing import Any

from convit_jax.benchmarks.timing import fastest
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError

# Those of our models that timm has.
TIMM_NAMES = {
    "convit_tiny": "convit_tiny",
    "convit_small": "convit_small",
    "convit_base": "convit_base",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
}


def check_timm(names: Iterable[str] = ()) -> None:
    """Refuses a comparison with timm that cannot be made.

    Raises:
        InputError: timm is not installed, or has no model of some name of ours.
    """
    for name in names:
        if name not in TIMM_NAMES:
            raise InputError(f"--against-timm: timm has no {name}, only {', '.join(TIMM_NAMES)}")
    if importlib.util.find_spec("timm") is None:
        raise InputError("--against-timm: no timm here; pip install torch torchvision timm")


def measure_timm(
    name: str,
    *,
    batch_size: int,
    image_size: int,
    seconds: float,
    dtype: str = "float32",
    compiled: bool = False,
) -> tuple[float, float]:
    """Images a second of timm's model: forward pass, and train step with AdamW.

    It runs on the GPU where PyTorch has one, else on the CPU.

    Args:
        name: one of ours that timm has too.
        batch_size: images a step.
        image_size: side in pixels.
        seconds: how long to repeat each of the two; at least three repetitions.
        dtype: "float32", or "bfloat16" for PyTorch's automatic mixed precision.
        compiled: by `torch.compile`.

    Raises:
        InputError: timm is not installed, or has no such model.
    """
    check_timm([name])
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    place = "cuda" if torch.cuda.is_available() else "cpu"
    mixed = torch.autocast(place, torch.bfloat16, enabled=dtype == "bfloat16")
    model = timm.create_model(TIMM_NAMES[name], drop_path_rate=0.1, img_size=image_size).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    run = torch.compile(model) if compiled else model
    images = torch.randn(batch_size, 3, image_size, image_size, device=place)
    labels = torch.randint(0, imagenet.NUM_CLASSES, (batch_size,), device=place)

    def forward() -> Any:
        with torch.no_grad(), mixed:
            logits = run(images)
        if place == "cuda":
            torch.cuda.synchronize()
        return logits

    def train_step() -> Any:
        optimizer.zero_grad()
        with mixed:
            logits = run(images)
            loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    model.eval()
    forward_seconds = fastest(forward, seconds)
    model.train()
    return batch_size / forward_seconds, batch_size / fastest(train_step, seconds)
