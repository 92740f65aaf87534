from pathlib import Path

import pytest

from upsr_jax.files.config_files import find_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["eval/realsr", "configs/eval/realsr.py"])
def test_a_config_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == CONFIGS / "eval" / "realsr.py"


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_config("tiny.py") == Path("tiny.py")
    assert find_config("tiny") == CONFIGS / "tiny.py"


@pytest.mark.parametrize("name", ["", "nope", "degradations", "../tests/multidevice/small"])
def test_what_is_no_config_is_refused_with_the_names_there_are(name):
    with pytest.raises(
        ValueError,
        match=r"demo, distil_x4, estimator_x4, eval/imagenet_test, .*, tiny, validated_x4$",
    ):
        find_config(name)
