"""Speed of timm's PyTorch models at the same work, in PyTorch and ONNX Runtime."""

import importlib.util
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

from convit_jax.benchmarks.timing import best_time
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError
from convit_jax.models import TIMM_NAMES

# What `measure_onnx` needs besides timm; onnxscript is for PyTorch's exporter.
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_timm(names: Iterable[str] = ()) -> None:
    """Check that models can be compared with timm's.

    Raises:
        InputError: timm is not installed, or lacks one of the models.
    """
    for name in names:
        if name not in TIMM_NAMES:
            raise InputError(
                f"--against-timm: timm has no {name}; expected one of {', '.join(TIMM_NAMES)}"
            )
    if importlib.util.find_spec("timm") is None:
        raise InputError("--against-timm needs timm: pip install torch torchvision timm")


def measure_timm(
    name: str,
    *,
    batch_size: int,
    image_size: int,
    seconds: float,
    dtype: str = "float32",
    compiled: bool = False,
) -> tuple[float, float]:
    """Return the images per second of timm's forward pass, and of its train step with AdamW.

    The model runs on the GPU if PyTorch has one, else on the CPU.

    Args:
        name: one of our names that `TIMM_NAMES` has.
        batch_size: images per step.
        image_size: side in pixels.
        seconds: how long to repeat each of the two; at least three repetitions.
        dtype: "float32", or "bfloat16" for PyTorch's automatic mixed precision.
        compiled: whether to compile the model with `torch.compile`.

    Raises:
        InputError: timm is not installed, or has no such model.
    """
    check_timm([name])
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    model = timm.create_model(TIMM_NAMES[name], drop_path_rate=0.1, img_size=image_size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    run = torch.compile(model) if compiled else model
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = torch.randint(0, imagenet.NUM_CLASSES, (batch_size,), device=device)

    def forward() -> Any:
        with torch.no_grad(), autocast:
            logits = run(images)
        if device == "cuda":
            torch.cuda.synchronize()
        return logits

    def train_step() -> Any:
        optimizer.zero_grad()
        with autocast:
            logits = run(images)
            loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    model.eval()
    forward_seconds = best_time(forward, seconds)
    model.train()
    return batch_size / forward_seconds, batch_size / best_time(train_step, seconds)


def missing_for_onnx() -> list[str]:
    """Return the packages that `measure_onnx` needs and that are not installed."""
    return [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def measure_onnx(name: str, *, batch_size: int, image_size: int, seconds: float) -> float:
    """Return the images per second of timm's forward pass, exported to ONNX Runtime on the CPU.

    The packages of `missing_for_onnx` must be installed. Parameters are as in `measure_timm`.

    Raises:
        InputError: timm is not installed, or has no such model.
    """
    check_timm([name])
    import onnxruntime  # noqa: PLC0415
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    model = timm.create_model(TIMM_NAMES[name], img_size=image_size).eval()
    images = torch.randn(batch_size, 3, image_size, image_size)
    with tempfile.TemporaryDirectory() as directory:
        path = str(pathlib.Path(directory) / "model.onnx")
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: images.numpy()}
    return batch_size / best_time(lambda: session.run(None, inputs), seconds)
