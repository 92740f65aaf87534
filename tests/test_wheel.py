"""The wheel, as one who has installed it finds it: in an empty folder, away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SHOW = """
import sys
from absl import flags
import upsr_jax
from upsr_jax import main

flags.FLAGS(sys.argv)
config = main.CONFIG.value
print(upsr_jax.__version__, config.seed, config.data.folders[0], config.pretrained.estimator)
assert "jax" not in sys.modules
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it, which is what installing does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("*.whl")
    zipfile.ZipFile(archive).extractall(folder / "installed")
    return folder / "installed"


def run(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the wheel; -S passes over the editable installation of the checkout."""
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(wheel), *packages])}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_it_holds_the_package_alone_with_types_and_configs(wheel):
    assert [path.name for path in wheel.iterdir() if path.suffix != ".dist-info"] == ["upsr_jax"]
    assert (wheel / "upsr_jax" / "py.typed").exists()
    shipped = {path.name for path in (wheel / "upsr_jax" / "shipped" / "configs").rglob("*.py")}
    assert shipped == {path.name for path in (ROOT / "configs").rglob("*.py")}


def test_a_config_is_found_by_its_name_in_an_empty_folder(wheel, tmp_path):
    shown = run(wheel, tmp_path, "-c", SHOW, "--config", "demo", "--config.seed=5")
    assert shown.returncode == 0, shown.stderr
    _, seed, photos, model = shown.stdout.split()
    assert seed == "5"
    assert Path(photos) == wheel / "upsr_jax" / "assets" / "photos" and Path(photos).is_dir()
    assert Path(model).is_dir()


def test_a_config_of_ones_own_can_start_from_one_of_the_wheel(wheel, tmp_path):
    text = "from configs.eval import realsr\n\nget_config = realsr.get_config\n"
    (tmp_path / "mine.py").write_text(text)
    shown = run(wheel, tmp_path, "-c", SHOW, "--config=mine.py", "--config.data.folders=('a',)")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[1:3] == ["0", "a"]


def test_an_unknown_name_ends_it_with_the_names_there_are(wheel, tmp_path):
    ended = run(wheel, tmp_path, "-m", "upsr_jax.main", "--config", "nope", "--workdir", "a")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "--config=nope" in ended.stderr
    names = "demo, distil_x4, estimator_x4, eval/imagenet_test,"
    assert names in ended.stderr and "tiny" in ended.stderr
    assert "degradations" not in ended.stderr
