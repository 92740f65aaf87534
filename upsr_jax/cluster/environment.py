"""Tell what a run runs on: code, packages, devices, and what these can do."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

# Begin the names of the variables that change a run's speed or numbers from outside.
PREFIXES = ("JAX_", "XLA_", "LIBTPU_", "NCCL_")

# Dense bfloat16 teraflops per second of what JAX calls a device, searched in order. Sources:
# NVIDIA's data sheet of each GPU, halved where it counts sparsity (RTX 4090: Ada architecture
# white paper, float32 accumulation); docs.cloud.google.com/tpu/docs/v4 to /tpu7x (there a device
# is half a chip).
PEAK_TERAFLOPS = (
    (r"\bGB200\b", 2500.0),
    (r"\bB200\b", 2250.0),
    (r"\bH(100|200) NVL\b", 835.5),
    (r"\bH100 PCIe\b", 756.5),
    (r"\b(H100|H200|GH200)\b", 989.5),
    (r"\bA100\b", 312.0),
    (r"\bA40\b", 149.7),
    (r"\bA30\b", 165.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.05),
    (r"\bL40\b", 181.05),
    (r"\bL4\b", 121.0),
    (r"\bRTX 4090$", 165.2),
    (r"^TPU v4$", 275.0),
    (r"^TPU v5( lite|e)$", 197.0),
    (r"^TPU v5p?$", 459.0),
    (r"^TPU v6( lite|e)$", 918.0),
    (r"^TPU7x$", 1153.5),
)


@functools.cache
def program() -> str:
    """Name this program and its version, as results note them."""
    return f"upsr_jax {importlib.metadata.version('upsr_jax')}"


def describe_environment() -> dict[str, Any]:
    """Collect, ready for JSON, what one needs to know to run the same again."""
    packages = {
        package.name: package.version
        for package in importlib.metadata.distributions()
        if "Name" in package.metadata  # not what a broken uninstallation leaves behind
    }
    return {
        "command": sys.orig_argv,
        "folder": os.getcwd(),
        "revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "local_devices": jax.local_device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "backend_version": jax.devices()[0].client.platform_version,
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES)},
        "packages": dict(sorted(packages.items())),
    }


def git_revision() -> str:
    """Name the commit this package is of, with "+changes" where tracked files differ from it.

    Outside of a checkout it is the version of the package.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # nor ask the repository that a virtual environment lies in
        version = [found.version for found in importlib.metadata.distributions(name="upsr_jax")]
        return f"upsr_jax {' '.join(version)}, no repository"
    command = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", "-C", str(root)]
    command += ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "a repository that git can't read"


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Look up how many operations a second a device can do; None where that is not known.

    Args:
      device_kind: as `jax.Device.device_kind` has it, such as "NVIDIA A100-SXM4-80GB".
      dtype: of the factors of matrix products. For "float32" there is no one number: JAX computes
        it as TF32, in three bfloat16 passes or in full, by device and setting.
    """
    halves = ("bfloat16",) if device_kind.startswith("TPU") else ("bfloat16", "float16")
    if dtype not in halves or "MIG" in device_kind:  # a slice of a GPU bears the GPU's name
        return None
    for pattern, teraflops in PEAK_TERAFLOPS:
        if re.search(pattern, device_kind):
            return teraflops * 1e12
    return None


def device_memory() -> dict[str, int]:
    """Read the memory in use, its peak and the limit of this host's fullest device, in bytes.

    Empty where the backend does not say, as on CPUs.
    """
    names = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
    statistics = [device.memory_stats() for device in jax.local_devices()]
    known = [stats for stats in statistics if stats]
    if not known:
        return {}
    fullest = max(known, key=lambda stats: stats["bytes_in_use"])
    return {name: fullest[name] for name in names if name in fullest}
