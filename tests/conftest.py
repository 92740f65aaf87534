import importlib.util

# PyTorch is an extra that only conversion needs; everything else must pass without it.
WITHOUT_TORCH = importlib.util.find_spec("torch") is None
collect_ignore = ["test_torch_io.py"] if WITHOUT_TORCH else []


def pytest_report_header() -> list[str]:
    if WITHOUT_TORCH:
        return ["test_torch_io.py is left out, as it needs PyTorch: pip install -e '.[convert]'"]
    return []
