"""Describe a model folder: in a line, and as the page that a hub shows, its README.md."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from upsr_jax.files.whole import file_sha256, write_whole
from upsr_jax.models.config import ModelConfig
from upsr_jax.weights.model_folder import CARD, WEIGHTS, load_model
from upsr_jax.weights.models import BUILT_IN_MODEL

METRICS = ("psnr", "ssim", "lpips")  # as huggingface.co calls them


def count_parameters(params: Mapping[str, Any]) -> dict[str, int]:
    """Count the numbers of each network."""
    return {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}


def describe_sampling(config: ModelConfig) -> str:
    """Name how a model samples."""
    if config.network == "estimator":
        return "by its estimate alone"
    method, steps = config.sampler["method"], config.sampler["steps"]
    return "in one step" if method == "one_step" else f"in {steps} steps, by {method}"


def describe_model(folder: Path) -> str:
    """Check a model folder, and describe it in a line; raises as `load_model` does."""
    config, params = load_model(folder, dtype=None, check_weights=False)
    counts = sum(count_parameters(params).values())
    size = (folder / WEIGHTS).stat().st_size / 1e6
    return f"{counts:,} parameters, {size:,.1f} MB, restores {describe_sampling(config)}"


def read_license(folder: Path) -> str | None:
    """Read a model folder's license, as "apache-2.0", off its README.md; None if it tells none."""
    if folder == BUILT_IN_MODEL:
        return "apache-2.0"  # as this package, whose weights it is
    page = folder / CARD
    header = page.read_text(errors="replace").split("---")[1:2] if page.is_file() else []
    found = re.search(r"^license: *(\S+)$", "".join(header), re.M)
    return found[1] if found else None


def write_card(
    folder: Path,
    license: str | None = None,
    results: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model folder's README.md, with what is known of the model, and return its path.

    `license` is its identifier, as "apache-2.0"; `results` are those of an evaluation. Raises
    FileExistsError if there is one, unless `overwrite`, and else as `load_model` does.
    """
    config, params = load_model(folder, dtype=None)
    path = folder / CARD
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: add --overwrite to replace it")
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", license):
        raise ValueError(f"license {license!r} is no identifier, such as apache-2.0 or other")
    write_whole(path, card(folder, config, params, license, results or {}).encode())
    return path


def card(
    folder: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    license: str | None,
    results: Mapping[str, Any],
) -> str:
    """Lay out the page: the header in YAML that a hub reads, and the text that people do."""
    means = results.get("means", {})
    measured = [name for name in results.get("metrics", {}) if name in means]
    kinds = [kind for kind in METRICS if any(name.startswith(kind) for name in measured)]
    name = folder.resolve().name
    tags = ("super-resolution", "image-restoration", "jax", "flax", "arxiv:2503.18512")
    lines = [
        "---",
        *([f"license: {license.lower()}"] if license else []),
        "library_name: upsr_jax",
        "pipeline_tag: image-to-image",
        "tags:",
        *(f"- {tag}" for tag in tags),
        *(["metrics:", *(f"- {kind}" for kind in kinds)] if kinds else []),
        "---",
        "",
        f"# {name}",
        "",
        "Enlarges photographs four times with UPSR ([arXiv 2503.18512]"
        "(https://arxiv.org/abs/2503.18512)), in JAX, as the package `upsr_jax` runs it.",
        "",
        "```bash",
        f"upsr upscale photo.jpg --out out/ --model OWNER/{name}",
        "```",
        "",
        "```python",
        "from upsr_jax import Upscaler",
        "",
        f'image = Upscaler.from_pretrained("OWNER/{name}")("photo.jpg")',
        "```",
        "",
        f"It restores {describe_sampling(config)}. Its arithmetic is in {config.dtype}.",
        "",
        "| network | parameters |",
        "|---|---|",
        *(f"| {part} | {count:,} |" for part, count in count_parameters(params).items()),
        "",
        f"SHA-256 of `{WEIGHTS}`: `{file_sha256(folder / WEIGHTS)}`",
    ]
    if measured:
        lines += ["", f"Measured on {results['protocol']['images']} images:", ""]
        lines += ["| | bicubic | this model | 95% interval |", "|---|---|---|---|"]
    for key in measured:
        mean, bicubic = means[key], means.get(f"bicubic_{key}")
        beside = f"{bicubic['mean']:.4f}" if bicubic else ""
        ends = f"{mean['low']:.4f} to {mean['high']:.4f}"
        lines.append(f"| {key} | {beside} | {mean['mean']:.4f} | {ends} |")
    return "\n".join(lines) + "\n"
