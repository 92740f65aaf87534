"""Show a photo's bicubic enlargement beside its upscaled version, at the centre of both.

python scripts/before_after.py photo.jpg out/photo.png out/before_after.png
"""

from pathlib import Path

import typer
from PIL import Image, ImageOps

SIDE = 640  # pixels of the enlarged photo; two of them fit most screens unscaled


def before_after(photo: Image.Image, upscaled: Image.Image) -> Image.Image:
    """Join the centres of the bicubic enlargement, left, and of the upscaled photo, right."""
    bicubic = photo.resize(upscaled.size, Image.Resampling.BICUBIC)
    width, height = (min(SIDE, side) for side in upscaled.size)
    left, top = (upscaled.width - width) // 2, (upscaled.height - height) // 2
    picture = Image.new("RGB", (2 * width, height))
    for i, image in enumerate((bicubic, upscaled)):
        picture.paste(image.crop((left, top, left + width, top + height)), (i * width, 0))
    return picture


def main(photo: Path, upscaled: Path, out: Path) -> None:
    """Write the comparison of PHOTO and UPSCALED to OUT and print where it is."""
    images = [
        ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in (photo, upscaled)
    ]
    before_after(*images).save(out)
    print(f"Before (bicubic) and after (UPSR): {out.resolve()}")


if __name__ == "__main__":
    typer.run(main)
