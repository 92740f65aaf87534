"""The command `upsr`: upscale photos, convert weights, describe a model."""

import importlib.metadata
import json
import os
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer
from tqdm import tqdm

if TYPE_CHECKING:
    from upsr_jax.upscaler import Upscaler

# JAX and everything that needs it are imported inside the commands, so that --help answers at once.
app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class OutputFormat(StrEnum):
    """File formats that results can be written in."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


ModelFolder = Annotated[
    Path | None, typer.Option(help="Model folder.", show_default="the built-in one")
]


class Job(NamedTuple):
    """One picture to upscale and where its result goes."""

    source: Path
    target: Path


@app.command()
def upscale(
    images: Annotated[
        list[Path], typer.Argument(help="Photos, or folders of them, searched throughout.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the results; a folder's layout is mirrored in it.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    model: ModelFolder = None,
    tile: Annotated[
        int, typer.Option(help="Pixels a side run at once; less takes less memory.")
    ] = 256,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist.")
    ] = False,
    format: Annotated[
        OutputFormat, typer.Option(help="File format of the results.")
    ] = OutputFormat.png,
) -> None:
    """Upscale photos x4; a bad file is reported and the others are done (exit code 1)."""
    jobs, problems = plan_jobs(images, out, f".{format}")
    for problem in problems:
        typer.echo(problem, err=True)
    prepare_folder(out)
    failed = len(problems)
    if jobs:
        failed += run_jobs(jobs, load_upscaler(model, tile), seed, overwrite)
    typer.echo(
        f"{len(jobs) + len(problems) - failed} of {len(jobs) + len(problems)} upscaled into {out}"
    )
    raise typer.Exit(1 if failed else 0)


@app.command()
def convert(
    sources: Annotated[list[Path], typer.Argument(help=".pth files, or one model folder.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Convert PyTorch weights to a model folder, or a model folder back to PyTorch."""
    from upsr_jax.convert_files import convert_files

    try:
        report = convert_files(sources, destination, overwrite)
    except (OSError, ImportError, ValueError) as error:
        fail(str(error))
    typer.echo("\n".join(report))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The --workdir of a training run.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    step: Annotated[int | None, typer.Option(show_default="the last checkpoint")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a checkpoint's averaged weights as a model folder."""
    from upsr_jax.run_checkpoints import export_model

    try:
        step = export_model(run, out, step, overwrite)
    except (OSError, ValueError) as error:
        fail(str(error))
    typer.echo(f"step {step} of {run} is in {out}")


@app.command()
def info(
    model: Annotated[Path | None, typer.Argument(show_default="the built-in model")] = None,
) -> None:
    """Describe a model and what it would run on."""
    import jax

    from upsr_jax.checkpoint import load_model
    from upsr_jax.upscaler import BUILT_IN_MODEL

    folder = model or BUILT_IN_MODEL
    try:
        config, params = load_model(folder)
    except (OSError, ValueError) as error:
        fail(str(error))
    typer.echo(f"model      {folder.resolve().name} ({folder})")
    for name, network in params.items():
        typer.echo(f"{name:<10} {sum(leaf.size for leaf in jax.tree.leaves(network)):,} parameters")
    for package in ("upsr_jax", "jax", "flax"):
        typer.echo(f"{package:<10} {importlib.metadata.version(package)}")
    typer.echo(f"devices    {', '.join(str(device) for device in jax.devices())}")
    typer.echo(f"config     {json.dumps(config.to_dict(), indent=2)}")


def plan_jobs(inputs: list[Path], out: Path, suffix: str) -> tuple[list[Job], list[str]]:
    """List pictures to upscale and problems with the inputs; exit if two would have one result."""
    from upsr_jax.image_io import READ_SUFFIXES, find_images

    sources, problems = {}, []
    for given in inputs:
        if os.path.isdir(given):
            pairs = [
                (path, out / path.relative_to(given).with_suffix(suffix))
                for path in map(Path, find_images(given))
                if out.resolve() not in path.resolve().parents
            ]
            if not pairs:
                suffixes = ", ".join(READ_SUFFIXES)
                problems.append(f"{given}: no images in this folder; looked for {suffixes}.")
        elif os.path.exists(given):  # unlike Path.exists, it never raises
            pairs = [(given, out / f"{given.stem}{suffix}")]
        else:
            pairs = []
            problems.append(f"{given}: no such file.")
        for source, target in pairs:
            other = sources.setdefault(target, source)
            if other.resolve() != source.resolve():
                fail(f"{other} and {source} would both become {target}; rename one of them.")
    return [Job(source, target) for target, source in sources.items()], problems


def prepare_folder(out: Path) -> None:
    """Make the output folder and exit if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        fail(f"{out}: no folder to write to ({error.strerror}); choose another with --out.")


def load_upscaler(model: Path | None, tile: int) -> "Upscaler":
    """Load a model, and keep compiled programs for the next start; exit if it is not whole."""
    enable_compilation_cache()
    from upsr_jax.upscaler import Upscaler

    try:
        return Upscaler.from_pretrained(model, tile)
    except (OSError, ValueError) as error:
        fail(str(error))


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, if that works and no other is set."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upsr_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def run_jobs(jobs: list[Job], upscaler: "Upscaler", seed: int, overwrite: bool) -> int:
    """Upscale pictures one by one, report those that fail and count them."""
    from upsr_jax.image_io import ImageError

    failed = 0
    try:
        for job in tqdm(jobs, unit="image", disable=None):
            try:
                run_job(job, upscaler, seed, overwrite)
            except ImageError as error:
                tqdm.write(str(error), file=sys.stderr)
                failed += 1
            except (FloatingPointError, MemoryError) as error:
                tqdm.write(f"{job.source}: {error}", file=sys.stderr)
                failed += 1
    except KeyboardInterrupt:
        fail("stopped; the results written so far are whole.", code=130)
    return failed


def run_job(job: Job, upscaler: "Upscaler", seed: int, overwrite: bool) -> None:
    """Upscale one picture; raise ImageError before the work if its result cannot be written."""
    from upsr_jax.image_io import ImageError, check_storable, read_image, write_image

    if os.path.exists(job.target):
        if not overwrite:
            raise ImageError(
                f"{job.source}: {job.target} exists already; add --overwrite to replace it."
            )
        if job.target.samefile(job.source):
            raise ImageError(f"{job.source}: its result would replace it; choose another --out.")
    image = read_image(job.source)
    height, width, channels = image.shape
    check_storable(job.target, 4 * height, 4 * width, has_alpha=channels == 4)
    write_image(job.target, upscaler(image, seed, progress=True), overwrite)


def fail(message: str, code: int = 2) -> NoReturn:
    """Say in one line why nothing more is done, and exit."""
    typer.echo(f"upsr: {message}", err=True)
    raise typer.Exit(code)
