"""Make pairs to learn from a teacher: degraded crops of photographs, and its pictures of them.

    python scripts/make_teacher_pairs.py PHOTOS... --teacher FILE.py:FUNCTION --out PAIRS --count N

FUNCTION takes low-resolution images, uint8 RGB [b, h, w, 3], and returns what a model is to make of
them, uint8 [b, 4h, 4w, 3]. PAIRS gets `lq/`, `teacher/` and `truth/`, the crops themselves;
train on them with --config.data.folders='()' --config.data.pairs='("PAIRS/teacher", "PAIRS/lq")'.
What is in pair i depends on the photographs, the seed and i alone. Stopped at any moment, the same
command goes on, and a higher count adds to what is there.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from tqdm import tqdm

from configs.degradations import imagenet_test, real_esrgan
from upsr_jax.data.degradation.host import degrade
from upsr_jax.data.examples import crop_photo
from upsr_jax.data.sources import Pair, Source, concatenate, open_source
from upsr_jax.files.find import check_local
from upsr_jax.files.names import show
from upsr_jax.files.whole import check_begun, locked, read_json, write_json
from upsr_jax.files.write_photo import write_image

SIZE = 256  # pixels of a crop
SCALE = (0.6, 1.0)  # photographs are shrunk by a factor in between first

Teacher = Callable[[np.ndarray], np.ndarray]


def main(
    photos: Annotated[list[str], typer.Argument(help="Folders of photographs, plain or packed.")],
    teacher: Annotated[str, typer.Option(help="FILE.py:FUNCTION")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="Pairs to make.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    heavy: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the heavy degradation, real_esrgan.")
    ] = 0.7,
    batch: Annotated[int, typer.Option(min=1, help="Images the teacher gets at once.")] = 8,
) -> None:
    """Make the pairs that OUT doesn't hold yet."""
    try:
        made = make_pairs(photos, load_teacher(teacher), out, count, seed, heavy, batch)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(show(f"make_teacher_pairs: {error}"))
    print(f"{out}: {count} pairs, {made} of them new")


def load_teacher(name: str) -> Teacher:
    """Load a function of a Python file; raises ValueError or ImportError where there is none."""
    file, _, function = name.rpartition(":")
    if not file or not Path(file).is_file():
        raise ValueError(
            f"--teacher {name}: give a file of Python and a function, FILE.py:FUNCTION"
        )
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--teacher {name}: {file} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"--teacher {name}: {file} has no function {function}")
    return getattr(module, function)


def make_pairs(
    photos: Sequence[str],
    teacher: Teacher,
    out: Path,
    count: int,
    seed: int,
    heavy: float,
    batch: int,
) -> int:
    """Make the pairs that `out` doesn't hold yet; return how many.

    Raises ValueError where `out` was begun otherwise, another process is at work in it, or the
    teacher returns something else than pictures of four times the size.
    """
    check_local(out)
    cv2.setNumThreads(1)  # so that a pair is the same on every machine
    source = concatenate([open_source(folder) for folder in photos])
    settings = {"photos": list(photos), "images": source.size, "seed": seed, "heavy": heavy}
    with locked(out):
        begun = out / "settings.json"
        if begun.exists():
            check_begun(out, read_json(begun), settings)
        write_json(begun, settings)
        missing = [i for i in range(count) if not file_of(out, "lq", i).exists()]
        waiting = iter(missing)
        with tqdm(total=len(missing), unit="pair") as progress:
            while numbers := list(islice(waiting, batch)):
                pairs = [make_pair(source, seed, heavy, i) for i in numbers]
                pictures = ask(teacher, np.stack([pair.lr for pair in pairs]))
                for i, pair, picture in zip(numbers, pairs, pictures, strict=True):
                    images = {"teacher": picture, "truth": pair.hr, "lq": pair.lr}
                    for folder, image in images.items():  # the last one says that all are there
                        write_image(file_of(out, folder, i), image, overwrite=True)
                progress.update(len(numbers))
    return len(missing)


def file_of(out: Path, folder: str, number: int) -> Path:
    """Name an image of a pair."""
    return out / folder / f"{number:06}.png"


def make_pair(source: Source, seed: int, heavy: float, number: int) -> Pair:
    """Crop and degrade a photograph, as (seed, number) draw them; one that can't be read is passed.

    Raises ValueError if none of a hundred can be read.
    """
    rng = np.random.default_rng((seed, number))
    problem: Any = None
    for _ in range(100):
        index = int(rng.integers(source.size))
        try:
            photo = source.read(index)
        except (OSError, ValueError) as error:
            problem = error
            continue
        setting = real_esrgan() if rng.random() < heavy else imagenet_test()
        hr = crop_photo(rng, photo, SIZE, SCALE, 0.0, False)
        return Pair(hr, degrade(rng, hr, **setting.to_dict()))
    raise ValueError(f"a hundred photographs can't be read, at last: {problem}")


def ask(teacher: Teacher, lr: np.ndarray) -> np.ndarray:
    """Let the teacher make pictures; raises ValueError for anything else."""
    pictures = np.asarray(teacher(lr))
    wanted = (len(lr), 4 * lr.shape[1], 4 * lr.shape[2], 3)
    if pictures.dtype != np.uint8 or pictures.shape != wanted:
        raise ValueError(
            f"the teacher returned {pictures.dtype} {list(pictures.shape)}, but uint8 "
            f"{list(wanted)} is needed"
        )
    return pictures


if __name__ == "__main__":
    typer.run(main)
