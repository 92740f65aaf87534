"""The page of a model, read by the package of the hub that shows it."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from tiny_model import save_tiny_model

from upsr_jax.weights.card import write_card
from upsr_jax.weights.model_folder import load_model

MEANS = {
    "psnr_y": {"mean": 24.36, "low": 22.6, "high": 26.3, "images": 16},
    "bicubic_psnr_y": {"mean": 24.4, "low": 22.6, "high": 26.5, "images": 16},
    "lpips_vgg": {"mean": 0.3769, "low": 0.35, "high": 0.407, "images": 16},
}
RESULTS = {
    "protocol": {"images": 16},
    "metrics": {"psnr_y": True, "lpips_vgg": False},
    "means": MEANS,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def model(tmp_path, tiny) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


def test_the_hub_reads_what_is_known(model):
    path = write_card(model, "Apache-2.0", RESULTS)
    card = huggingface_hub.ModelCard.load(path)
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "upsr_jax",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "image-restoration", "jax", "flax", "arxiv:2503.18512"],
        "metrics": ["psnr", "lpips"],
    }
    assert "| psnr_y | 24.4000 | 24.3600 | 22.6000 to 26.3000 |" in card.text
    assert "| lpips_vgg |  | 0.3769 | 0.3500 to 0.4070 |" in card.text
    _, params = load_model(model)
    (weights,) = [line for line in (model / "sha256").read_text().splitlines() if "model" in line]
    assert weights.split()[0] in card.text
    assert f"| estimator | {sum(x.size for x in leaves(params['estimator'])):,} |" in card.text


def leaves(tree):
    return [x for each in tree.values() for x in leaves(each)] if isinstance(tree, dict) else [tree]


def test_what_is_not_known_is_left_out(model):
    card = huggingface_hub.ModelCard.load(write_card(model))
    assert {"license", "metrics"} & card.data.to_dict().keys() == set()
    assert "Measured" not in card.text


def test_a_card_is_replaced_only_if_that_is_asked_for(model):
    (model / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"README\.md exists already: add --overwrite"):
        write_card(model)
    assert (model / "README.md").read_text() == "mine"
    write_card(model, overwrite=True)
    assert (model / "README.md").read_text() != "mine"


def test_a_license_that_would_break_the_header_is_refused(model):
    with pytest.raises(ValueError, match="is no identifier"):
        write_card(model, "mit\nlibrary_name: other")
    assert not (model / "README.md").exists()
