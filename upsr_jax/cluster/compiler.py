"""Keep XLA's CPU compiler from a fusion that computes some programs wrong, and tell if it does.

Since jaxlib 0.10.2 that compiler hands reductions, with what they are reduced from, to a library
(YNN). Some programs then come out wrong and without an error: the two below do. A JAX that is new
or old may do so in another way, which is why they are run by `upsr doctor`.
"""

import importlib.metadata
import os

FLAG = "xla_cpu_experimental_ynn_fusion_type"
# What remains with the library: single products and convolutions. Wrong are REDUCE and DOT, which
# is products with what stands around them.
SAFE = "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
SAFE_FLAG = f"--{FLAG}={SAFE}"
# The versions of jaxlib that were seen to know it: one that doesn't would end the process.
FIRST, BEHIND_LAST = (0, 10), (0, 13)


def knows_flag(version: str) -> bool:
    """Tell whether a version of jaxlib, as "0.10.2", knows FLAG and its values."""
    major, minor = version.split(".")[:2]
    return FIRST <= (int(major), int(minor)) < BEHIND_LAST


def use_safe_compiler() -> None:
    """Put SAFE_FLAG into XLA_FLAGS, for all programs of this process; call it before JAX starts.

    What the user has set stays, and so does an XLA_FLAGS that names a file of flags.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    names_file = flags.strip() and not flags.lstrip().startswith("-")
    if FLAG in flags or names_file or not knows_flag(importlib.metadata.version("jaxlib")):
        return
    os.environ["XLA_FLAGS"] = f"{flags} {SAFE_FLAG}".lstrip()


def compiler_options(platform: str) -> dict[str, str] | None:
    """Return `jax.jit`'s compiler_options for devices of a platform, as "cpu".

    They do for one program what `use_safe_compiler` does for all, wherever it was not called: JAX
    may run already where this package is imported.
    """
    if platform != "cpu" or FLAG in os.environ.get("XLA_FLAGS", ""):
        return None
    return {FLAG: SAFE} if knows_flag(importlib.metadata.version("jaxlib")) else None


def wrong_programs(options: dict[str, str] | None = None) -> list[str]:
    """Run two programs that compilers are known to compute wrong, and name those that are wrong.

    `options` are `jax.jit`'s compiler_options. Both run on JAX's default device.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    def lengths(rows, matrix):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)

    def derivative(x):
        return jnp.sum((x @ jnp.full_like(x, 0.5)) * x, axis=-1)

    count = 32_769
    rows = np.zeros((count, 3), np.float32)
    rows[:, 0] = np.arange(count)
    x = np.random.default_rng(0).standard_normal((5, 60, 60), np.float32)
    x64 = x.astype(np.float64)
    programs = [
        (
            "a product of a matrix with each row, squared and summed (jax-ml/jax#39103)",
            (lengths, rows, np.eye(3, dtype=np.float32)),
            rows[:, 0].astype(np.float64) ** 2,
        ),
        (
            "a product with a constant matrix, multiplied and summed, as in derivatives",
            (derivative, x),
            ((x64 @ np.full_like(x64, 0.5)) * x64).sum(-1),
        ),
    ]
    wrong = []
    for name, (function, *arguments), expected in programs:
        found = np.asarray(jax.jit(function, compiler_options=options)(*arguments), np.float64)
        # Not "greater": what is wrong may be NaN.
        if not np.abs(found - expected).max() < 1e-4 * np.abs(expected).max():
            wrong.append(name)
    return wrong
