import importlib.util
import os
import shutil
import tempfile

# No test compiles what another has, in whatever process of this run. JAX reads it when it is
# imported; with a size, which is never reached, processes wait for one another's writing.
CACHE, SIZE = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"
OWN_CACHE = None if CACHE in os.environ else tempfile.mkdtemp(prefix="upsr_jax_tests_")
if OWN_CACHE:
    os.environ |= {CACHE: OWN_CACHE, SIZE: str(100 * 2**30)}

# PyTorch is an extra, to compare with; everything else must pass without it.
TORCH_TESTS = ["weights/test_with_torch.py", "train/test_train_in_bfloat16.py"]
WITHOUT_TORCH = importlib.util.find_spec("torch") is None
# Nor is pyiqa a dependency; a stand-in for it is tested always.
WITHOUT_PYIQA = importlib.util.find_spec("pyiqa") is None
# A browser is no Python package; the pages' texts are tested without one.
WITHOUT_CHROMIUM = not (shutil.which("chromium") or shutil.which("chromium-browser"))
BROWSER_TESTS = ["evaluation/test_report_browser.py", "serve/test_page_browser.py"]
collect_ignore = [
    *(TORCH_TESTS if WITHOUT_TORCH else []),
    *(["evaluation/test_pyiqa.py"] if WITHOUT_PYIQA else []),
    *(BROWSER_TESTS if WITHOUT_CHROMIUM else []),
]


def pytest_configure() -> None:
    from upsr_jax.cluster.compiler import use_safe_compiler

    use_safe_compiler()  # before any test starts JAX: they test what the commands run


def pytest_unconfigure() -> None:
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


def pytest_report_header() -> list[str]:
    lines = []
    if WITHOUT_TORCH:
        lines.append(
            f"{' and '.join(TORCH_TESTS)} are left out, as they need PyTorch: "
            "pip install -e '.[torch]'"
        )
    if WITHOUT_PYIQA:
        lines.append("test_pyiqa.py is left out, as it needs pyiqa")
    if WITHOUT_CHROMIUM:
        lines.append(
            f"{' and '.join(BROWSER_TESTS)} are left out, as they need chromium on the PATH"
        )
    return lines
