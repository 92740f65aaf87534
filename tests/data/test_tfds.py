"""Reading datasets that tensorflow-datasets prepared, with the real package."""

import io
import os
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from photos import draw_photo
from PIL import Image

from upsr_jax.data.sources import open_source

PHOTOS = [draw_photo(i, 40, 48 + 8 * i) for i in range(5)]


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Photographs with the features that imagenet2012 has."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=1000),
                "file_name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, photo in enumerate(PHOTOS):
            file = io.BytesIO()
            Image.fromarray(photo).save(file, "png")
            yield i, {"image": io.BytesIO(file.getvalue()), "label": i, "file_name": f"{i}.png"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepare the dataset and return the folder of its version."""
    data_dir = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir / "tiny" / "5.1.0"


def test_a_prepared_dataset_is_a_source_of_photographs(prepared):
    source = open_source(f"tfds:{prepared}/train")
    assert source.size == 5
    assert source.name(3) == f"tfds:{prepared}/train[3]"
    images = {source.read(i).tobytes() for i in range(5)}
    assert images == {photo.tobytes() for photo in PHOTOS}  # tfds shuffles what it writes
    assert open_source(f"tfds:{prepared}/train[:40%]").size == 2


def test_tensorflow_is_not_needed(prepared):
    code = f"""
import sys
from upsr_jax.data.sources import open_source
open_source("tfds:{prepared}/train").read(0)
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dataset_is_found_by_its_name(prepared):
    code = 'from upsr_jax.data.sources import open_source; open_source("tfds:tiny/train")'
    environment = os.environ | {"TFDS_DATA_DIR": str(prepared.parent.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_damaged_record_is_named(prepared, tmp_path):
    copy = tmp_path / "5.1.0"
    copy.mkdir()
    for path in prepared.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (shard,) = copy.glob("*array_record*")
    data = bytearray(shard.read_bytes())
    place = data.find(b"IDAT") + 20
    data[place] ^= 0xFF
    shard.write_bytes(data)
    source = open_source(f"tfds:{copy}/train")
    with pytest.raises(OSError, match=r"tfds:.*/train\[\d\]' can't be read"):
        for i in range(5):
            source.read(i)


@pytest.mark.parametrize(
    "spec", ["{root}/nosplit", "{root}/../train", "nothing_of_this_name/train", "train"]
)
def test_what_tfds_cannot_open_is_refused_in_a_sentence(prepared, spec):
    name = "tfds:" + spec.format(root=prepared)
    with pytest.raises(ValueError, match=r"can't be opened \(.+\)\. Prepare a dataset") as error:
        open_source(name)
    assert "\n" not in str(error.value)


class Labels(Tiny):
    """Examples without an image."""

    def _info(self):
        features = tfds.features.FeaturesDict({"label": tfds.features.ClassLabel(num_classes=9)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        yield 0, {"label": 0}


def test_a_dataset_without_images_is_refused(tmp_path):
    Labels(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(ValueError, match=r"can't be opened \('image'\)"):
        open_source(f"tfds:{tmp_path}/labels/5.1.0/train")


def test_a_dataset_without_random_access_is_refused(tmp_path):
    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    folder = tmp_path / "tiny" / "5.1.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"can't be opened \(Random access .* --file_format"):
        open_source(f"tfds:{folder}/train")
