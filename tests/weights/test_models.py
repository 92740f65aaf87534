"""Models found by name, and taken from a hub that runs here, with the hub's own package."""

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from tiny_model import save_tiny_model

from upsr_jax.weights.model_folder import load_model, save_model
from upsr_jax.weights.models import BUILT_IN_MODEL, find_model, list_models, models_folder

FILES = ["config.json", "model.safetensors", "sha256"]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder, with a folder of models that is not there yet."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("UPSR_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[list[str]]:
    """Serve the folder `tmp_path/hub` as huggingface.co does; give what is asked for."""
    asked, top = [], tmp_path / "hub"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self, with_body: bool = True) -> None:
            asked.append(self.path)
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                folder = top / "/".join(parts[2:4])
                names = [path.name for path in folder.glob("*")]
                siblings = [{"rfilename": name} for name in names]
                found = {"id": "/".join(parts[2:4]), "sha": REVISION, "siblings": siblings}
                body = json.dumps(found).encode()
                if "tree" in parts:
                    body = json.dumps(
                        [
                            {"type": "file", "path": path.name, "size": path.stat().st_size}
                            | {"oid": hashlib.sha1(path.read_bytes()).hexdigest()}
                            for path in folder.iterdir()
                        ]
                    ).encode()
                if not names:
                    return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
                return self.answer(200, body, {"Content-Type": "application/json"}, with_body)
            body = (top / "/".join(parts[:2]) / parts[-1]).read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            self.answer(200, body, {"ETag": etag, "X-Repo-Commit": REVISION}, with_body)

        def do_HEAD(self) -> None:
            self.do_GET(with_body=False)

        def answer(self, code: int, body: bytes, headers: dict, with_body: bool) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    yield asked
    server.shutdown()
    server.server_close()


def test_names_are_found_where_the_user_has_them(own, tmp_path, tiny):
    assert find_model() == find_model("lite_x4") == BUILT_IN_MODEL
    shutil.copytree(tiny, own / "tiny")
    assert find_model("tiny") == own / "tiny"
    assert [name for name, _ in list_models()] == ["lite_x4", "tiny"]
    here = tmp_path / "work" / "tiny"
    here.mkdir()
    assert find_model("tiny") == Path("tiny")  # a folder comes first
    with pytest.raises(FileNotFoundError, match=r"other is not a folder, nor a model in .*models"):
        find_model("other")


def test_the_folder_of_models_lies_among_the_users_data(monkeypatch, tmp_path):
    monkeypatch.delenv("UPSR_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert models_folder() == tmp_path / "data" / "upsr_jax" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".local" / "share" / "upsr_jax" / "models"


def test_a_model_of_the_hub_is_taken_once_and_whole(own, tmp_path, hub, tiny):
    there = Path(shutil.copytree(tiny, tmp_path / "hub" / "owner" / "name"))
    for extra in ("README.md", "pytorch_model.bin", "code.py"):
        (there / extra).write_text("not to be taken")
    folder = find_model("owner/name")
    assert folder == own / "owner" / "name"
    assert sorted(os.listdir(folder)) == [*FILES, "source.json"]
    assert all((folder / name).read_bytes() == (there / name).read_bytes() for name in FILES)
    assert not any((folder / name).is_symlink() for name in FILES)
    source = json.loads((folder / "source.json").read_text())
    assert (source["repository"], source["revision"]) == ("owner/name", REVISION)
    weights = (there / "model.safetensors").read_bytes()
    assert source["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert os.listdir(own / "owner") == ["name"]

    hub.clear()
    assert find_model("owner/name") == folder
    assert hub == []
    assert [name for name, _ in list_models()] == ["lite_x4", "owner/name"]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_what_is_no_whole_model_is_not_kept(own, tmp_path, hub, tiny, damage):
    there = Path(shutil.copytree(tiny, tmp_path / "hub" / "owner" / "name"))
    if damage == "missing":
        (there / "sha256").unlink()
        reason = "sha256 is missing"
    else:
        (there / "config.json").write_text("{}")
        reason = "config.json is damaged"
    with pytest.raises(ValueError, match=f"owner/name on huggingface.co is no model.*: {reason}"):
        find_model("owner/name")
    assert list((own / "owner").iterdir()) == []


@pytest.mark.parametrize("connected", [True, False])
def test_a_model_that_can_not_be_had_is_one_sentence(own, hub, monkeypatch, connected):
    if not connected:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError) as raised:
        find_model("owner/none")
    sentence = str(raised.value)
    assert sentence.startswith("owner/none is not a folder, and could not be downloaded")
    assert sentence.endswith("check the name, and the connection") and "\n" not in sentence
    assert list((own / "owner").iterdir()) == []


def test_without_the_hubs_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'upsr_jax\[hub\]'"):
        find_model("owner/name")


@pytest.mark.parametrize("name", ["/none/model", "../model", "a/b/c", "model/../.."])
def test_paths_are_never_asked_for(hub, name):
    assert find_model(name) == Path(name)
    assert hub == []


def test_a_folder_with_a_card_is_a_model_still_and_keeps_it(tmp_path, tiny):
    model = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    (model / "README.md").write_text("mine")
    config, params = load_model(model)
    save_model(model, config, params, overwrite=True)
    assert (model / "README.md").read_text() == "mine"
    load_model(model)
