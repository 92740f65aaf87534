import hashlib
import json
from pathlib import Path

import pytest

from upsr_jax.data import records
from upsr_jax.files.whole import write_json

RECORDS = [bytes([i]) * (1 + 5000 * i) for i in range(7)]


def write_folder(folder: Path, *shards: list[bytes]) -> Path:
    folder.mkdir()
    manifest = {"format": records.FORMAT, "num_shards": len(shards), "shards": {}}
    for i, shard in enumerate(shards):
        manifest["shards"][f"{i}.array_record"] = records.write_shard(
            folder / f"{i}.array_record", shard
        )
    manifest["count"] = sum(map(len, shards))
    write_json(records.manifest_path(folder), manifest)
    return folder


def change_manifest(folder, **changes):
    path = records.manifest_path(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_shards_are_read_as_they_were_written(tmp_path):
    folder = write_folder(tmp_path / "a", RECORDS[:3], [], RECORDS[3:])
    data, shards = records.open_shards(str(folder))
    assert [data[i] for i in range(len(data))] == RECORDS
    assert shards == {"0.array_record": 3, "1.array_record": 0, "2.array_record": 4}


def test_shards_are_described_and_the_same_again(tmp_path):
    for path in (tmp_path / "a", tmp_path / "b"):
        assert records.write_shard(path, iter(RECORDS)) == {
            "count": 7,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_failure_leaves_the_old_shard(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def failing():
        yield RECORDS[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_shard(path, failing())
    assert path.read_text() == "old"
    with pytest.raises(OSError, match=r"No such file or directory: '.*nowhere/a'"):
        records.write_shard(tmp_path / "nowhere" / "a", RECORDS)


def test_missing_and_torn_shards_are_found_on_opening(tmp_path):
    folder = write_folder(tmp_path / "a", RECORDS[:3], RECORDS[3:])
    shard = folder / "1.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"1\.array_record' has 0 records, not 4 .* Copy it again"):
        records.open_shards(str(folder))
    shard.unlink()
    with pytest.raises(ValueError, match=r"1\.array_record' has 0 records, not 4"):
        records.open_shards(str(folder))


def test_unfinished_and_foreign_manifests_are_refused(tmp_path):
    folder = write_folder(tmp_path / "a", RECORDS)
    change_manifest(folder, count=None, num_shards=5)
    with pytest.raises(ValueError, match=r"a' is unfinished, with 1 of 5 shards: run"):
        records.open_shards(str(folder))
    change_manifest(folder, format="something else")
    with pytest.raises(ValueError, match=r"manifest\.json' does not describe records"):
        records.open_shards(str(folder))
    records.manifest_path(folder).write_text("[1, 2")
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged"):
        records.open_shards(str(folder))
