"""verify, gc, forget, retry and the wider status as a user meets them. No Ray is started here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.plan import extend_plan
from echoprune.receipt import read_receipts
from echoprune.sources import list_sources
from jobs.cli import main
from jobs.retry import retry
from pipelines.config import IndexConfig
from pipelines.job_config import flag_name, option_fields
from pipelines.retry import RUN_OPTIONS
from pipelines.retry_config import RetryConfig
from tests import answer_folders
from tests import stores as made

REPOSITORY = Path(__file__).parents[2]
BAD = "/archive/bad.mp4"


def call(*arguments: str | Path) -> tuple[int, list[str], list[str]]:
    result = CliRunner().invoke(main, [str(each) for each in arguments], env={"COLUMNS": "250"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout.splitlines(), result.stderr.strip().splitlines()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made.planned_store(tmp_path / "store", made.settings(), failed=[BAD])
    return tmp_path / "store"


def test_verify_says_so_and_lists_what_is_wrong(store: Path) -> None:
    code, out, err = call("verify", store)
    assert code == 0 and err == [] and len(out) == 1
    assert out[0].startswith(f"{store} is sound: 7 rows in 3 shards") and "everything was reread" in out[0]
    receipt = next(iter(read_receipts(made.Storage(store)).values()))
    (store / receipt.files_of("cells")[0].name).unlink()
    for quick in ((), ("--quick",)):
        code, out, _ = call("verify", store, *quick)
        assert code == 1 and out[-1] == f"{store}: 1 findings"
        assert "is missing" in out[0] and "run the same command again" in out[0]
    code, _, err = call("verify", store.parent)
    assert code == 2 and len(err) == 1 and "neither a store" in err[0]


def test_names_of_videos_do_not_steer_the_terminal(tmp_path: Path) -> None:
    made.planned_store(tmp_path / "store", made.settings(), failed=["/archive/\x1b[31mred\x07.mp4"])
    name = "\x1b[31mred\x07.mp4"
    for command in (("status",), ("inspect", name), ("inspect", "\x1b[2J"), ("forget", name)):
        _, out, err = call(command[0], tmp_path / "store", *command[1:])
        assert all(each.isprintable() for each in [*out, *err]), command
        assert any("\\x" in each for each in [*out, *err]), command


def test_gc_names_what_goes(store: Path) -> None:
    (store / "tokens/left-0000.parquet").write_bytes(b"x" * 1500)
    code, out, _ = call("gc", store, "--dry-run")
    assert code == 0 and out == ["tokens/left-0000.parquet  1.5 kB", "1 files, 1.5 kB would be removed"]
    assert any("(and 1.5 kB to gc)" in line for line in call("status", store)[1])
    assert call("gc", store)[1][-1] == "1 files, 1.5 kB removed"
    assert call("gc", store)[1] == ["0 files, 0 B removed"]


def test_forget_says_what_it_forgot(store: Path) -> None:
    code, out, _ = call("forget", store, "0.mp4", "bad.mp4")
    assert (
        code == 0
        and out[:2] == ["forgot /archive/0.mp4", f"forgot {BAD}"]
        and "2 shards written again" in out[2]
    )
    assert call("forget", store, "0.mp4")[1] == ["nothing to do: forgotten already"]
    code, out, _ = call("status", store)
    assert code == 0 and any("5 ok, 0 partial, 0 failed, 0 to do; 2 forgotten" in line for line in out)
    code, _, err = call("forget", store, "nothing.mp4")
    assert code == 2 and len(err) == 1 and "no video 'nothing.mp4'" in err[0]


def test_compact_says_what_it_merged(store: Path) -> None:
    code, out, _ = call("compact", store)
    assert code == 0 and out == ["3 shards merged into 1; 4 files instead of 8"]
    assert call("compact", store)[1] == [f"nothing to do: {store} has no two shards that are small enough"]
    assert call("verify", store)[0] == 0


def test_status_tells_the_sources(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (archive / name).write_bytes(b"x" * 1000)
        os.utime(archive / name, (1_000_000_000, 1_000_000_000))
    settings = made.settings()
    storage = made.create_store(tmp_path / "store", settings)
    sources = list_sources([str(archive)])
    (shard,) = extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=9)
    made.write_shard(
        storage, settings, [made.clip(s.uri, settings) for s in sources], shard_id=shard.shard_id
    )
    (archive / "b.mp4").write_bytes(b"x")
    (archive / "c.mp4").unlink()
    code, out, _ = call("status", tmp_path / "store", "--sources")
    assert code == 0 and "sources: 1 changed, 1 vanished since they were planned" in out
    assert f"  changed: {archive / 'b.mp4'}" in out and f"  vanished: {archive / 'c.mp4'}" in out
    found = json.loads(call("status", tmp_path / "store", "--sources", "--json")[1][0])
    assert found["sources"] == {
        "changed": [str(archive / "b.mp4")],
        "vanished": [str(archive / "c.mp4")],
        "unchecked": 0,
    }
    on_disk = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert found["bytes_on_disk"] == on_disk > found["bytes"]
    assert "sources" not in json.loads(call("status", tmp_path / "store", "--json")[1][0])


def test_status_counts_quarantined_videos(tmp_path: Path) -> None:
    settings = made.settings()
    storage = made.create_store(tmp_path, settings)
    with storage.tmp_dir() as folder:
        writer = made.ShardWriter(folder, settings, "a1")
        made.add_failed(writer, BAD)
        uri = "/archive/killer.mp4"
        errors = {
            "error_stage": "encode",
            "error_class": "worker_died",
            "error": "it killed the worker twice",
        }
        writer.add_video({"video_id": made.video_id(uri), "uri": uri, "status": "failed"} | errors)
        files = writer.close()
        made.commit(storage, files, made.receipt(writer, files, "a1"), check_epoch=lambda: None)
    code, out, _ = call("status", tmp_path)
    assert code == 3 and any("2 failed" in line and "1 of the failed quarantined" in line for line in out)


def test_status_of_answers(tmp_path: Path) -> None:
    rows = [answer_folders.answer("q1", "what?", "a cat"), answer_folders.failed("q2", "what?")]
    answer_folders.write_answers(tmp_path, "a1", rows)
    code, out, _ = call("status", tmp_path)
    assert code == 3 and out[0] == str(tmp_path)
    assert "1 ok, 0 empty, 1 failed, 0 to do" in out[1] and out[-1] == "failed   1 unknown_video"
    found = json.loads(call("status", tmp_path, "--json")[1][0])
    assert found["counts"] == {"ok": 1, "empty": 0, "failed": 1, "missing": 0}
    assert found["errors"] == {"unknown_video": 1} and found["shards"] == 1
    for option in ("--sources", "--failures"):
        code, out, err = call("status", tmp_path, option)
        assert code == 2 and out == [] and len(err) == 1 and f"{option} is for a store" in err[0]


def test_retry_takes_the_options_of_index_that_decide_no_token() -> None:
    index = {field.name: field for field in option_fields(IndexConfig)}
    shared = [field for field in option_fields(RetryConfig) if field.name not in ("partial", "model")]
    # What retry lacks decides tokens, which the store says, or what is planned, which it does not change.
    tokens = {
        "model", "fps", "max_frames", "frames", "max_pixels", "decoder", "keep", "anchor_every", "dtype", "temperature",
        "window", "rank_by", "compression", "compute_dtype", "tower", "segment_cells",
    }  # fmt: skip
    planning = {"store", "shard_mb", "shard_videos", "bring_back"}
    assert set(index) - {field.name for field in shared} == tokens | planning
    assert {field.name for field in shared} == {*RUN_OPTIONS, "failed_ok"}
    for field in shared:
        assert field.metadata == index[field.name].metadata and field.default == index[field.name].default
    text = (REPOSITORY / "docs/operations.md").read_text()
    assert all(f"`{flag_name(field)}`" in text for field in option_fields(RetryConfig))
    assert {name for parameter in retry.params for name in parameter.opts} >= {
        "--class",
        "--partial",
        "--model",
    }


def test_wrong_calls_of_retry(store: Path, tmp_path: Path) -> None:
    code, _, err = call("retry")
    assert code == 2 and "STORE is missing" in err[0]
    code, _, err = call("retry", tmp_path)
    assert code == 2 and "is no store" in err[0]
    # The receipts of this store name no model.
    code, _, err = call("retry", store)
    assert code == 2 and len(err) == 1 and "give --model" in err[0]
    other = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "tiny")
    code, _, err = call("retry", store, "--model", other)
    assert code == 2 and len(err) == 1 and "the store was made with" in err[0]
