"""Peak speeds of accelerators, as their makers document them."""

# bfloat16 operations per second by `device_kind`, dense, a multiplication and an addition each one;
# of a GPU, by the words that its name contains, the first that fit.
TPU_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
GPU_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200 NVL", 836e12),
    ("H200", 989e12),
    ("A100", 312e12),
)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return a device's floating-point operations per second, or None if they are not known.

    Args:
        device_kind: as JAX names it.
        dtype: of the arithmetic; only bfloat16's speeds are known.
    """
    if dtype != "bfloat16":
        return None
    if device_kind in TPU_PEAKS:
        return TPU_PEAKS[device_kind]
    return next((speed for words, speed in GPU_PEAKS if words in device_kind), None)
