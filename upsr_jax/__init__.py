"""UPSR image super-resolution (arXiv 2503.18512) in JAX and Flax."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upsr_jax.upscale.upscaler import Upscaler

__all__ = ["Upscaler", "__version__"]

__version__: str


def __getattr__(name: str) -> Any:
    """Import the upscaler, and JAX with it, or look up the version when it is asked for."""
    if name == "Upscaler":
        from upsr_jax.upscale.upscaler import Upscaler

        return Upscaler
    if name == "__version__":
        return importlib.metadata.version("upsr_jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
