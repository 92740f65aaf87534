from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def no_networks() -> Iterator[None]:
    """Evaluate with the stand-in for the networks."""
    # Not above: jaxtyping, which pytest begins later, could not check the package any more.
    from stand_in import make_noisy_resize

    from upsr_jax.upscale import upscaler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upscaler, "make_super_resolve", make_noisy_resize)
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")
