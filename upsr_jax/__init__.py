"""UPSR image super-resolution (arXiv 2503.18512) in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upsr_jax.upscale.upscaler import Upscaler

__all__ = ["Upscaler"]


def __getattr__(name: str) -> Any:
    """Import the upscaler, and JAX with it, when it is first asked for."""
    if name == "Upscaler":
        from upsr_jax.upscale.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
