"""Whole runs from S3 to S3, a fifth of all requests failing: the same bytes as in local folders. One Ray for all that has faults."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import echoprune
from echoprune.answer_store import open_answers
from echoprune.s3_options import S3Options, use_s3
from echoprune.status import store_status
from echoprune.storage import Storage
from echoprune.verify import verify
from jobs.cli import main
from pipelines.answer import run_answer
from pipelines.answer_config import AnswerConfig
from pipelines.config import IndexConfig
from pipelines.index import run_index
from pipelines.metrics import METRICS
from pipelines.ray_session import session
from tests.clips import Clip, even, uneven, write
from tests.pipelines import in_process
from tests.pipelines.conftest import tables
from tests.pipelines.prometheus import wait_until
from tests.s3_servers import KEY, SECRET, FaultProxy

SEED, RATE = 7, 0.2
NAMES = ("plain.mp4", "b frames.mp4", "ümläut.mkv")


@dataclass(frozen=True)
class Runs:
    """What the runs left: local folders, and what the server keeps of the s3:// ones as folders on its disk."""

    folder: Path
    served: Path
    proxy: FaultProxy
    endpoint: str
    indexes: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    exported: Counter[tuple[str, str, str]]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, rclone_endpoint: str, rclone_folder: Path
) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    served = rclone_folder / "bucket" / "s3 runs"
    (served / "archive").mkdir(parents=True)
    write(Clip(NAMES[0], even(100)), served / "archive")
    write(Clip(NAMES[1], even(60), options={"bf": "2"}), served / "archive")
    write(Clip(NAMES[2], uneven(40)), served / "archive")
    (served / "archive" / "text.mp4").write_text("not a video")
    shutil.copytree(served / "archive", folder / "archive")
    questions = "".join(
        json.dumps({"question_id": f"{i}", "video": NAMES[i % 3], "question": f"What is shown, {i}?"}) + "\n"
        for i in range(6)
    )
    (folder / "questions.jsonl").write_text(questions)
    shutil.copy(folder / "questions.jsonl", served)
    base = "s3://bucket/s3 runs"
    with FaultProxy(rclone_endpoint, rate=RATE, seed=SEED, slow_s=0.05).running() as proxy:
        faulty = {"s3_endpoint": proxy.endpoint, "s3_patience": 120.0}
        clean = {"s3_endpoint": rclone_endpoint, "s3_patience": 30.0}
        answers: list[dict[str, Any]] = []
        print(f"seed {SEED}")  # noqa: T201 - shown where the test fails

        def config(store: str | Path, archive: str | Path, **options: Any) -> IndexConfig:
            return IndexConfig(
                store=str(store), model=str(tiny), paths=(str(archive),), max_pixels=20_000, shard_videos=2, **options
            )  # fmt: skip

        in_process.index(config(folder / "local", folder / "archive", **clean))
        in_process.index(config(folder / "from s3", f"{base}/archive", **clean))
        with session(None, object_store_bytes=200 << 20):
            index = run_index(
                config(f"{base}/store", f"{base}/archive", decoders_per_gpu="1", **faulty),
                on_progress=lambda snapshot: None,
            )
            for store, out, asked, options in (
                (folder / "from s3", folder / "answers", folder / "questions.jsonl", clean),
                (f"{base}/store", f"{base}/answers", f"{base}/questions.jsonl", faulty),
            ):
                answer = run_answer(
                    AnswerConfig(
                        store=str(store), model=str(tiny), out=str(out), questions=str(asked), budget="64",
                        max_new_tokens=4, **options,
                    ),
                    on_progress=lambda snapshot: None,
                )  # fmt: skip
                answers.append(answer["run"])
            shards = sum(each["shards"] for each in answers)
            exported = wait_until(lambda found: found["echoprune_shards_total", "answer", ""] >= shards)
        yield Runs(folder, served, proxy, rclone_endpoint, [index["run"]], answers, exported)
    use_s3(S3Options())


def test_a_store_in_s3_has_the_same_bytes_as_a_local_one(runs: Runs) -> None:
    made = tables(runs.served / "store")
    assert made == tables(runs.folder / "from s3") and any(name.startswith("tokens/") for name in made)
    assert sum(runs.proxy.injected.values()) > 0.1 * runs.proxy.requests > 10
    assert set(runs.proxy.injected) == {"503", "429", "reset", "slow", "truncated", "lost"}


def test_videos_from_s3_give_what_local_ones_give(runs: Runs) -> None:
    local, remote = (echoprune.open_store(runs.folder / name) for name in ("local", "from s3"))
    own = ["video_id", "uri", "etag", "token_row", "error"]
    rows = [
        sorted(
            (
                {name: value for name, value in row.items() if name not in own} | {"name": Path(row["uri"]).name}
                for row in store.videos().to_pylist()
            ),
            key=lambda row: row["name"],
        )
        for store in (local, remote)
    ]  # fmt: skip
    assert rows[0] == rows[1] and [row["status"] for row in rows[0]].count("ok") == 3
    for name in NAMES:
        ours, theirs = local.tokens(name), remote.tokens(name)
        assert ours.tokens.equal(theirs.tokens) and ours.echo is not None and ours.echo.equal(theirs.echo)
    assert all(row["etag"] for row in remote.videos().to_pylist())


def test_answers_in_s3_have_the_same_bytes(runs: Runs) -> None:
    local, remote = runs.folder / "answers" / "answers", runs.served / "answers" / "answers"
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        for folder in (local, remote)
    ]
    assert digests[0] == digests[1] and digests[0]
    table = open_answers(runs.folder / "answers").table(["status"])
    assert table["status"].to_pylist() == ["ok"] * 6


def test_what_is_exported_to_prometheus_is_what_the_reports_say(runs: Runs) -> None:
    def total(reports: list[dict[str, Any]], *path: str) -> float:
        found = 0.0
        for report in reports:
            value: Any = report
            for name in path:
                value = value.get(name, 0)
            found += value
        return found

    asked = {"asked": "requests", "repeated": "retries", "refused": "slow_downs"}
    expected = {
        ("echoprune_videos_total", "index", "ok"): total(runs.indexes, "videos", "ok"),
        ("echoprune_videos_total", "index", "failed"): total(runs.indexes, "videos", "failed"),
        ("echoprune_video_seconds_total", "index", ""): 3600 * total(runs.indexes, "video_hours"),
        ("echoprune_tokens_seen_total", "index", ""): total(runs.indexes, "tokens_seen"),
        ("echoprune_tokens_kept_total", "index", ""): total(runs.indexes, "tokens_kept"),
        ("echoprune_shards_total", "index", ""): total(runs.indexes, "shards"),
        ("echoprune_bytes_total", "index", ""): total(runs.indexes, "store_bytes"),
        ("echoprune_questions_total", "answer", "ok"): total(runs.answers, "questions", "ok"),
        ("echoprune_visual_tokens_total", "answer", ""): total(runs.answers, "visual_tokens"),
        ("echoprune_new_tokens_total", "answer", ""): total(runs.answers, "new_tokens"),
        ("echoprune_shards_total", "answer", ""): total(runs.answers, "shards"),
        ("echoprune_bytes_total", "answer", ""): total(runs.answers, "answer_bytes"),
        **{
            ("echoprune_worker_seconds_total", job, doing): total(reports, "worker_s", doing)
            for job, reports in (("index", runs.indexes), ("answer", runs.answers))
            for doing in reports[0]["worker_s"]
        },
    }
    assert {name for name, _, _ in expected} | {"echoprune_s3_requests_total"} == set(METRICS)
    for key, value in expected.items():
        assert value > 0 and runs.exported[key] == pytest.approx(value), key
    # What did not happen is there too: Prometheus would miss the first of those that come later.
    assert 0 < runs.exported["echoprune_videos_total", "index", "partial"] < 1e-300
    for outcome, name in asked.items():
        # Between the last look and the report the driver puts the report itself.
        for job, reports in (("index", runs.indexes), ("answer", runs.answers)):
            shown = runs.exported["echoprune_s3_requests_total", job, outcome]
            assert (shown > 0 or outcome == "refused") and shown <= total(reports, "s3", name) <= shown + 100


def test_no_credential_is_in_anything_that_was_written(runs: Runs) -> None:
    for path in runs.served.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content and SECRET.encode() not in content, path


def test_commands_on_a_store_in_s3(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "s3://bucket/s3 runs/store"
    here = ["--s3-endpoint", runs.endpoint]
    use_s3(S3Options(endpoint=runs.endpoint))
    assert list(verify(url)) == []
    found = store_status(url, sources=True)
    assert found["videos"] == {"ok": 3, "partial": 0, "failed": 1, "missing": 0}
    assert found["sources"] == {"changed": [], "vanished": [], "unchecked": 0}

    def told(*arguments: str | Path, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), *here])
        assert (ended.value.code or 0) == code
        return capsys.readouterr().out

    assert "3 ok" in told("status", url, code=3)
    assert "is sound" in told("verify", url)
    assert "kept per cell" in told("inspect", url, NAMES[0], "--png", tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 1000
    told("export", url, "--out", tmp_path / "exported")
    told("gc", url, "--dry-run")
    copy = "s3://bucket/s3 runs/copy"
    # Through the server, which keeps what it knows of its folders for minutes.
    for name in Storage(url).names():
        Storage(copy).write_bytes(name, Storage(url).read_bytes(name))
    assert "merged into" in told("compact", copy)
    assert "forgot" in told("forget", copy, NAMES[0])
    assert "2 ok" in told("status", copy, code=3)
