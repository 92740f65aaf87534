"""`upsr evaluate` measures what `upsr upscale` gives: the same files, byte for byte."""

import numpy as np
import pytest
from photos import draw_photo
from PIL import Image, ImageCms
from tiny_model import save_tiny_model
from typer.testing import CliRunner

from upsr_jax import cli

SEED = "5"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of mixed sizes and kinds, one in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()

    def draw(seed, *size):
        return Image.fromarray(draw_photo(seed, *size))

    draw(0, 20, 24).save(folder / "small.png")
    draw(1, 70, 131).save(folder / "more" / "tiled.png")
    draw(2, 64, 60).convert("L").save(folder / "grey.png")
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"  # lying on its side
    draw(3, 40, 90).save(folder / "turned.jpg", exif=exif, quality=95)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    draw(4, 30, 66).save(folder / "profile.png", icc_profile=profile)
    alpha = np.tile(np.linspace(0, 255, 50).astype(np.uint8), (33, 1))
    Image.fromarray(np.dstack([draw_photo(5, 33, 50), alpha])).save(folder / "alpha.png")
    return folder


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def test_both_commands_write_the_same_files(model, photos, tmp_path):
    """Three photos run whole, three in tiles."""
    options = ["--model", model, "--seed", SEED, "--tile", 64, "--fidelity", 0.25]
    run("upscale", photos, "--out", tmp_path / "upscaled", "--format", "png", *options)
    run("evaluate", "--images", photos, "--out", tmp_path / "evaluated", *options)
    upscaled, evaluated = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
        for folder in (tmp_path / "upscaled", tmp_path / "evaluated" / "images")
    )
    assert len(upscaled) == 6
    assert evaluated == upscaled
    for name, mode in (("alpha.png", "RGBA"), ("grey.png", "L"), ("small.png", "RGB")):
        with Image.open(tmp_path / "upscaled" / name) as image:
            assert image.mode == mode
    with Image.open(tmp_path / "upscaled" / "turned.png") as image:
        assert image.size == (160, 360)
