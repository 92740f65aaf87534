"""What is a folder, and what is not."""

from pathlib import Path

import pytest

from upsr_jax.files.find import check_local


@pytest.mark.parametrize(
    "path", ["gs://bucket/run", Path("gs://bucket/run"), "https://a.b/c.png", "/data/s3:/bucket"]
)
def test_a_url_is_no_path(path):
    with pytest.raises(ValueError, match="is a URL, and only folders are read and written: mount"):
        check_local("here", path)


def test_other_paths_may_look_as_they_like():
    check_local("", "a:b", "C:/photos", "12:30/photos", "/data/gs/bucket", Path("x//y"))
