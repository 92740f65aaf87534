import importlib.util
import shutil

from upsr_jax.cluster.compiler import use_safe_compiler

# Before any test starts JAX: they test what the commands run.
use_safe_compiler()

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
