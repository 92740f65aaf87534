"""Upscale photos, measure results, convert weights, and look after models."""

import functools
import importlib.metadata
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from upsr_jax.cluster.compiler import use_safe_compiler
from upsr_jax.files.names import show

if TYPE_CHECKING:
    from upsr_jax.upscale.collection import Job, Outcome
    from upsr_jax.upscale.sizes import Wanted
    from upsr_jax.upscale.upscaler import Upscaler


class OutputFormat(StrEnum):
    """File formats of results: that of the photo, or one of `write_photo.FORMATS`."""

    auto = "auto"
    png = "png"
    jpg = "jpg"
    webp = "webp"
    tiff = "tiff"
    avif = "avif"
    jxl = "jxl"


class Precision(StrEnum):
    """Types of the networks' arithmetic, `upscaler.PRECISIONS`."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    auto = "auto"


class ExportFormat(StrEnum):
    """What `export` writes."""

    model = "model"
    onnx = "onnx"
    stablehlo = "stablehlo"
    web = "web"


class Method(StrEnum):
    """Ways to sample, `sampler.METHODS`."""

    ddim = "ddim"
    ancestral = "ancestral"
    one_step = "one_step"


def from_home(value: Any) -> Any:
    """Put the home folder for a `~` in front, which shells leave there after `--option=`."""
    if isinstance(value, tuple):
        return tuple(map(from_home, value))
    return value and Path(os.path.expanduser(value))


ModelFolder = Annotated[
    Path | None,
    typer.Option(
        help="Model folder, a name that `upsr models` lists, or OWNER/NAME on huggingface.co.",
        show_default="the built-in one",
        callback=from_home,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same bytes.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Steps of sampling.", show_default="as the model was trained"),
]
Sampler = Annotated[
    Method | None, typer.Option(help="How to sample.", show_default="as the model was trained")
]
MinNoise = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Noise where the model is sure of its estimate; less of it invents less.",
        show_default="as the model was trained",
    ),
]
Tile = Annotated[int, typer.Option(help="Pixels a side run at once; less takes less memory.")]
Fidelity = Annotated[
    float,
    typer.Option(min=0, max=1, help="Blend with the estimate: 0 is sharpest, 1 most faithful."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, gpu, tpu, or one: gpu:1.", show_default="all there are")
]
Arithmetic = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        help="Arithmetic of the networks; auto: float32 on CPUs, else bfloat16.",
        show_default="as the model was trained",
    ),
]


# JAX and everything that needs it are imported inside the commands, so that --help answers at once.
app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    epilog="Exit codes: 0 all is done, 1 something could not be done and is named, 2 nothing was "
    "begun, 128 + n stopped by signal n. More: docs/command_line.md.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def prepare() -> None:
    """Set up what every command needs."""
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata in photos
    use_safe_compiler()


@contextmanager
def stoppable_command() -> Iterator[None]:
    """Say in one line how to go on where a signal stops what is inside, and exit."""
    from upsr_jax.cluster.stop import SENTENCE, exit_status, stoppable

    try:
        with stoppable():
            yield
    except KeyboardInterrupt as stopped:
        fail(SENTENCE, code=exit_status(stopped))


@app.command()
@stoppable_command()
def upscale(
    images: Annotated[
        list[Path],
        typer.Argument(help="Photos, or folders of them, searched throughout; - is stdin."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the results; a folder's layout is mirrored in it. For one photo, a "
            "name such as large.png is that of the result, and - is stdout.",
            callback=from_home,
        ),
    ],
    scale: Annotated[
        float | None,
        typer.Option(
            min=1, max=16, help="Times the photo's sides.", show_default="4, unless a side is given"
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the results, in pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Of the results, in pixels.")] = None,
    max_side: Annotated[
        int | None, typer.Option(min=1, help="Pixels of a result's longer side, at most.")
    ] = None,
    format: Annotated[
        OutputFormat,
        typer.Option(help="File format of the results; auto: the photo's, png if it can't be."),
    ] = OutputFormat.auto,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of jpg, webp, avif and jxl.", show_default="90 or 95"),
    ] = None,
    suffix: Annotated[str, typer.Option(help="Put at the end of names: _x4 makes a_x4.jpg.")] = "",
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Keep no EXIF, XMP and IPTC data.")
    ] = False,
    strip_location: Annotated[
        bool, typer.Option("--strip-location", help="Keep all of it but the place (GPS).")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option("--uncertainty", help="Write a.uncertainty.png, too: bright is unsure."),
    ] = False,
    seed: Seed = 0,
    model: ModelFolder = None,
    tile: Tile = 256,
    steps: Steps = None,
    sampler: Sampler = None,
    min_noise: MinNoise = None,
    fidelity: Fidelity = 0.0,
    device: Device = None,
    precision: Arithmetic = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist and are others.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object in a line for each photo.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, for several processes.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="How many processes share the pictures.")
    ] = None,
    process_id: Annotated[
        int | None, typer.Option("--process_id", help="Which of them this is, from 0 on.")
    ] = None,
) -> None:
    """Upscale photos x4, on all devices; start it again to go on where it was ended.

    A bad file is reported and the others are done (exit code 1).
    """
    from upsr_jax.upscale.collection import meet_others, plan, run_jobs, take_share
    from upsr_jax.upscale.sizes import Wanted

    sampling = dict(steps=steps, method=sampler, min_noise=min_noise, fidelity=fidelity)
    running = dict(device=device, precision=precision) | sampling
    try:
        wanted = Wanted(
            scale, width, height, max_side, format, quality, strip_metadata, strip_location
        )
        if Path("-") in (*images, out):
            for_names = {
                "--suffix": suffix,
                "--uncertainty": uncertainty,
                "--dry-run": dry_run,
                "--json": as_json,
                "--processes": processes,
            }
            if without := [option for option, value in for_names.items() if value]:
                fail(f"- goes without {', '.join(without)}: name both files, or leave that out.")
            load_fn = functools.partial(load_upscaler, model, tile, **running)
            pipe(images, out, wanted, seed, overwrite, quiet, load_fn)
            raise typer.Exit
        jobs, folder, problems, wanted = plan(images, out, wanted, suffix)
        if dry_run:
            list_jobs(jobs, problems, wanted)
            raise typer.Exit(1 if problems else 0)
        prepare_folder(folder)
        names = sorted(job.target.relative_to(folder) for job in jobs)
        agreed = names, seed, model, tile, running, wanted, uncertainty, overwrite
        process_id, processes = meet_others(coordinator, processes, process_id, agreed)
    except (OSError, ValueError) as error:
        fail(error)
    jobs = take_share(jobs, folder, process_id, processes)
    problems = problems if process_id == 0 else []
    for problem in problems:
        say(problem, err=True)
    done = kept = failed = 0
    if jobs:
        upscaler = load_upscaler(model, tile, **running)
        on_end = print_end if as_json else None
        done, kept, failed = run_jobs(
            jobs, upscaler, seed, overwrite, wanted, uncertainty, on_end, quiet
        )
    if not (quiet or as_json):
        earlier = f", {kept} of them earlier" if kept else ""
        share = f"process {process_id} of {processes}: " if processes > 1 else ""
        total = len(jobs) + len(problems)
        say(f"{share}{done + kept} of {total} upscaled into {out}{earlier}")
    raise typer.Exit(1 if failed or problems else 0)


def pipe(
    images: list[Path],
    out: Path,
    wanted: "Wanted",
    seed: int,
    overwrite: bool,
    quiet: bool,
    load_fn: Callable[[], "Upscaler"],
) -> None:
    """Upscale one photo from stdin, to stdout, or both; exit if it can't be.

    Raises ValueError or OSError for names that don't go together.
    """
    from tqdm import tqdm

    from upsr_jax.files.photos import ImageError
    from upsr_jax.files.whole import whole_file
    from upsr_jax.upscale.collection import names_picture, with_format_of
    from upsr_jax.upscale.photo import upscale_photo

    dash = Path("-")
    if len(images) > 1:
        raise ValueError("- stands for one photo: name no other beside it")
    if out != dash:
        if not names_picture(out):
            raise ValueError(f"--out {out} is a folder: a photo from stdin needs a name, out.png")
        wanted = with_format_of(out, wanted)
        if out.exists() and not overwrite:
            raise ValueError(f"{out}: exists already; add --overwrite to replace it")
    elif sys.stdout.isatty():
        raise ValueError("--out - would write a picture to the terminal: pipe it, or give a name")
    source = sys.stdin.buffer.read() if images[0] == dash else images[0]
    upscaler = load_fn()
    form = "{percentage:3.0f}% |{bar}| {remaining} left"
    with tqdm(bar_format=form, leave=False, disable=True if quiet else None) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            result = upscale_photo(upscaler, source, wanted, seed, on_progress=on_progress)
        except (ImageError, FloatingPointError, MemoryError) as error:
            fail(error, code=1)
    for warning in () if quiet else result.warnings:
        say(warning, err=True)
    if out == dash:
        sys.stdout.buffer.write(result.data)
        sys.stdout.buffer.flush()
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out, overwrite) as file:
            file.write(result.data)


def list_jobs(jobs: "list[Job]", problems: list[str], wanted: "Wanted") -> None:
    """Print what a command would do."""
    from upsr_jax.upscale.collection import expected_sizes

    for problem in problems:
        say(problem, err=True)
    for job, size in expected_sizes(jobs, wanted).items():
        say(f"{job.source} -> {job.target}" + (f" ({size[1]}x{size[0]})" if size else ""))


def print_end(job: "Job", end: "Outcome | Exception") -> None:
    """Print what became of a photo as an object of JSON in a line."""
    line = {"source": str(job.source), "target": str(job.target)}
    if isinstance(end, Exception):
        line |= {"error": str(end)}
    else:
        line |= end._asdict() | {"target": str(end.target), "seconds": round(end.seconds, 3)}
    typer.echo(json.dumps(line))


@app.command()
@stoppable_command()
def evaluate(
    out: Annotated[
        Path, typer.Option(help="Folder of the results and the report.", callback=from_home)
    ],
    pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="GT LR",
            help="Folders of true and of low-resolution images.",
            callback=from_home,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of low-resolution images without a truth.", callback=from_home),
    ] = None,
    model: ModelFolder = None,
    seed: Seed = 0,
    tile: Tile = 256,
    steps: Steps = None,
    sampler: Sampler = None,
    min_noise: MinNoise = None,
    fidelity: Fidelity = 0.0,
    device: Device = None,
    precision: Arithmetic = None,
) -> None:
    """Restore a folder and measure the results; start it again to go on where it was ended.

    A bad image is reported and the others are done (exit code 1).
    """
    if pairs is not None and images is None:
        gt, lr = pairs
    elif images is not None and pairs is None:
        gt, lr = None, images
    else:
        fail("give either --pairs GT LR or --images LR.")
    start_jax()
    enable_compilation_cache()
    from upsr_jax.evaluation.run import evaluate_folders
    from upsr_jax.upscale.restore import Sampling
    from upsr_jax.weights.models import find_model

    try:
        results = evaluate_folders(
            find_model(model),
            lr,
            gt,
            out,
            seed=seed,
            sampling=Sampling(steps, sampler, min_noise, fidelity),
            tile=tile,
            device=device,
            precision=precision,
        )
    except (OSError, ValueError, ImportError) as error:
        fail(error)
    raise typer.Exit(1 if results["broken"] else 0)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="The --out of an evaluation.")],
    metrics: Annotated[list[str], typer.Argument(help="Metrics of pyiqa, as clipiqa or musiq.")],
) -> None:
    """Measure an evaluation's results by metrics of pyiqa, if you have installed it."""
    from upsr_jax.evaluation.pyiqa_scores import score
    from upsr_jax.evaluation.run import means_table

    try:
        results = score(folder, metrics)
    except (OSError, ValueError, ImportError) as error:
        fail(error)
    typer.echo(means_table(results))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="The --out of two or more evaluations.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder to write compare.md and compare.html to.", callback=from_home),
    ] = Path("comparison"),
) -> None:
    """Put evaluations side by side."""
    from upsr_jax.evaluation.report import compare

    try:
        typer.echo(compare(folders, out))
    except (OSError, ValueError) as error:
        fail(error)


@app.command()
def convert(
    sources: Annotated[
        list[Path], typer.Argument(help=".pth or safetensors files, or one model folder.")
    ],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Convert PyTorch weights to a model folder, or a model folder back to PyTorch."""
    start_jax()
    from upsr_jax.weights.convert_files import convert_files

    try:
        report = convert_files(sources, destination, overwrite)
    except (OSError, ImportError, ValueError) as error:
        fail(*str(error).splitlines())  # it may list what doesn't fit
    for line in report:
        say(line)


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="The --workdir of a training run; for onnx, stablehlo and web, a model folder, or "
            "a name that `upsr models` lists."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Model folder, file or page to write.", callback=from_home)
    ],
    to: Annotated[
        ExportFormat,
        typer.Option(
            help="A model folder, a file that runs without this program, or a folder with a page "
            "that runs it in a browser."
        ),
    ] = ExportFormat.model,
    step: Annotated[
        int | None, typer.Option(help="Of the run.", show_default="the last checkpoint")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Pixels a side of the pictures that a file is for, or of a page's tiles, 64, "
            "128, ... or 512.",
            show_default="256; web: 128",
        ),
    ] = None,
    precision: Arithmetic = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a run's weights as a model folder, or a model for other programs and browsers."""
    if to != ExportFormat.model:
        if step is not None:
            fail(f"--step is of a training run: leave it out with --to {to}.")
        export_to_file(source, out, to, size, precision, overwrite)
        return
    if size is not None or precision is not None:
        fail("--size and --precision are of other formats: add --to onnx, stablehlo or web.")
    start_jax()
    from upsr_jax.train.checkpoints import export_model, quiet_orbax

    quiet_orbax()
    try:
        step = export_model(source, out, step, overwrite)
    except (OSError, ValueError) as error:
        fail(error)
    say(f"step {step} of {source} is in {out}")


def export_to_file(
    model: Path, out: Path, to: str, size: str | None, precision: str | None, overwrite: bool
) -> None:
    """Write a model as a file or a page, and tell its size; exit if it can't be."""
    start_jax()
    from upsr_jax.export.formats import export_file, parse_size
    from upsr_jax.export.web import export_web

    is_page = to == ExportFormat.web
    try:
        side = parse_size(size or ("128" if is_page else "256"))
        if is_page:
            written = export_web(model, out, side, precision, overwrite)
        else:
            written = export_file(model, out, to, side, precision, overwrite)
    except (OSError, ValueError) as error:
        fail(error)
    kind = "a page with tiles" if is_page else "for pictures"
    say(f"{model} {kind} of {side}x{side} is in {out} ({written.size / 1e6:.1f} MB)")
    if written.most_difference is not None:
        say(
            f"in 0..1, onnxruntime's result differs from JAX's by {written.mean_difference:.1e} on "
            f"average and {written.most_difference:.1e} at most"
        )
    if is_page:
        say(f"to try it: python -m http.server --bind 127.0.0.1 --directory {show(out)} 8000")


@app.command()
def info(
    model: Annotated[Path | None, typer.Argument(show_default="the built-in model")] = None,
) -> None:
    """Describe a model and what it would run on."""
    start_jax()
    import jax

    from upsr_jax.weights.card import count_parameters
    from upsr_jax.weights.model_folder import load_model
    from upsr_jax.weights.models import find_model

    try:
        folder = find_model(model)
        config, params = load_model(folder)
    except (OSError, ValueError) as error:
        fail(error)
    say(f"model      {folder.resolve().name} ({folder})")
    for name, count in count_parameters(params).items():
        say(f"{name:<10} {count:,} parameters")
    for package in ("upsr_jax", "jax", "flax"):
        typer.echo(f"{package:<10} {importlib.metadata.version(package)}")
    typer.echo(f"devices    {', '.join(str(device) for device in jax.devices())}")
    typer.echo(f"config     {json.dumps(config.as_dict(), indent=2)}")


@app.command()
def models() -> None:
    """List the models that --model knows by name: the built-in one and those in your folder."""
    from upsr_jax.weights.card import describe_model
    from upsr_jax.weights.models import list_models, models_folder

    try:
        found = list(list_models())
    except OSError as error:
        fail(error)
    broken = False
    for name, folder in found:
        try:
            say(f"{name:<24} {describe_model(folder)}")
        except (OSError, ValueError) as error:
            broken = True
            say(f"{name}: {error}", err=True)
    say(f"Your folder of models is {models_folder()}", err=True)
    raise typer.Exit(1 if broken else 0)


@app.command()
def card(
    model: Annotated[Path, typer.Argument(help="Model folder, or its name in `upsr models`.")],
    license: Annotated[
        str | None, typer.Option(help="What the weights are under, as apache-2.0.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="The --out of an evaluation, to tell its means.", callback=from_home),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model folder's README.md, which huggingface.co shows, from what is known of it."""
    from upsr_jax.evaluation.report.results import read_results
    from upsr_jax.weights.card import write_card
    from upsr_jax.weights.models import BUILT_IN_MODEL, find_model

    try:
        folder = find_model(model)
        if folder == BUILT_IN_MODEL:
            fail("the built-in model has its card, model_card.md: name a model of your own.")
        found = read_results(results) if results else None
        say(f"{write_card(folder, license, found, overwrite)} is written")
    except (OSError, ValueError) as error:
        fail(error)


@app.command()
def doctor() -> None:
    """Look over this installation, and say what is wrong and how to cure it (exit code 1)."""
    start_jax()
    programs = enable_compilation_cache()
    from upsr_jax.upscale.doctor import examine

    wrong = []
    for finding in examine(programs):
        say(f"{finding.name:<10} {finding.text}")
        wrong += [finding.wrong] if finding.wrong else []
    say("")
    for sentence in wrong:
        say(f"wrong: {sentence}", err=True)
    if wrong:
        raise typer.Exit(1)
    say("nothing is wrong")


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that others reach needs a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(envvar="UPSR_TOKEN", help="What requests must bear, and the page's password."),
    ] = None,
    model: ModelFolder = None,
    tile: Tile = 256,
    device: Device = None,
    precision: Arithmetic = None,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Most bytes of a photo.")] = 64 * 2**20,
    max_pixels: Annotated[int, typer.Option(min=4096, help="Most pixels of a photo.")] = 16_000_000,
    max_queue: Annotated[int, typer.Option(min=0, help="Most photos that wait.")] = 32,
    max_seconds: Annotated[float, typer.Option(min=1, help="Most seconds for a photo.")] = 3600.0,
) -> None:
    """Serve a page and an HTTP interface for photos to upscale, until SIGTERM or Ctrl-C."""
    try:
        from upsr_jax.serve.jobs import Limits
        from upsr_jax.serve.server import check_access, serve
    except ImportError as error:
        fail(f"{error.name} is not installed: pip install 'upsr_jax[serve]'")
    try:
        check_access(host, token)
        start_jax()
        enable_compilation_cache()
        from upsr_jax.upscale.upscaler import Upscaler

        serve(
            lambda sampling: Upscaler.from_pretrained(
                model, tile, device, precision, **vars(sampling)
            ),
            host,
            port,
            token or None,
            Limits(max_bytes, max_pixels, max_queue, max_seconds),
            say,
        )
    except (OSError, ValueError) as error:
        fail(error)


def prepare_folder(out: Path) -> None:
    """Make the output folder and exit if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        fail(f"{out}: no folder to write to ({error.strerror}); choose another with --out.")


def load_upscaler(model: Path | None, tile: int, **options: Any) -> "Upscaler":
    """Load a model, and keep compiled programs for the next start; exit if it is not whole."""
    enable_compilation_cache()
    from upsr_jax.upscale.upscaler import Upscaler

    try:
        return Upscaler.from_pretrained(model, tile, **options)
    except (OSError, ValueError) as error:
        fail(error)


def start_jax() -> None:
    """Exit if JAX finds no device to run on."""
    from upsr_jax.cluster.devices import check_devices

    try:
        check_devices()
    except ValueError as error:
        fail(error)


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs in the user's cache folder, if that works and no other is set.

    Returns the folder, None if there is none.
    """
    import jax

    if own := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(own)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upsr_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def say(line: object, err: bool = False) -> None:
    """Print a line, without whatever names in it would do to a terminal."""
    typer.echo(show(line), err=err)


def fail(*lines: object, code: int = 2) -> NoReturn:
    """Say why nothing more is done, in one line if that will do, and exit."""
    typer.echo("upsr: " + "\n".join(map(show, lines)), err=True)
    raise typer.Exit(code)
