"""ConViT (d'Ascoli et al., ICML 2021) in JAX and Flax.

The public names are imported on first use, so that worker processes, which read and augment images,
need not import Flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convit_jax.data.images.preprocessing import preprocess as preprocess
    from convit_jax.models import list_models as list_models
    from convit_jax.weights import create_model as create_model
    from convit_jax.weights import load_model as load_model

__version__ = "0.1.0"

_MODULES = {
    "create_model": "convit_jax.weights",
    "list_models": "convit_jax.models",
    "load_model": "convit_jax.weights",
    "preprocess": "convit_jax.data.images.preprocessing",
}

__all__ = ["create_model", "list_models", "load_model", "preprocess"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'convit_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
