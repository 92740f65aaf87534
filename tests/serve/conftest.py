import pytest
from tiny_model import save_tiny_model

from upsr_jax.serve.jobs import Desk, Limits
from upsr_jax.upscale.upscaler import Upscaler


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def upscaler(model):
    return Upscaler.from_pretrained(model, tile=64)


@pytest.fixture(scope="module")
def desk(model, upscaler):
    """A desk of the tiny model, of which the usual way to sample is compiled once for all tests."""

    def load(sampling):
        if sampling == type(sampling)():
            return upscaler
        return Upscaler.from_pretrained(model, 64, **vars(sampling))

    desk = Desk(load, Limits(bytes=20_000, pixels=5000, queue=2))
    yield desk
    desk.stop()
