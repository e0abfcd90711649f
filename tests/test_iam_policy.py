"""infra/iam_policy.json suffices for index, answer, verify and gc, grants nothing that they do not need, and no write to inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echoprune.errors import ConfigError, StoreError
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.s3_client import PART_BYTES, s3_client
from echoprune.s3_options import S3Options, S3Place, use_s3
from echoprune.sources import list_sources
from echoprune.storage import Storage
from jobs.cli import main
from pipelines.answer import run_answer
from pipelines.answer_config import AnswerConfig
from pipelines.config import IndexConfig
from pipelines.index import run_index
from tests.clips import Clip, even, write
from tests.iam import Asked, PolicyProxy, allows, asked_by

pytestmark = pytest.mark.usefixtures("shared_ray")

PLACES = {
    "INPUT_BUCKET": "inputs",
    "INPUT_PREFIX": "team/archive",
    "OUTPUT_BUCKET": "outputs",
    "OUTPUT_PREFIX": "team/stores",
}
ARCHIVE, STORES = "s3://inputs/team/archive", "s3://outputs/team/stores"
NAMES = ("one.mp4", "two.mp4")


def load_policy() -> dict[str, Any]:
    text = (Path(__file__).parents[1] / "infra" / "iam_policy.json").read_text(encoding="utf-8")
    for name, value in PLACES.items():
        assert name in text
        text = text.replace(name, value)
    loaded = json.loads(text)
    assert isinstance(loaded, dict) and loaded["Version"] == "2012-10-17"
    return loaded


@pytest.fixture(scope="module")
def owner(moto_endpoint: str) -> S3Options:
    """Whoever owns the buckets, and is held to no policy."""
    options = S3Options(endpoint=moto_endpoint, patience_s=20)
    for bucket in ("inputs", "outputs"):
        s3_client(options)._ask("create_bucket", Bucket=bucket)
    return options


@pytest.fixture(scope="module")
def role(owner: S3Options, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyProxy]:
    """The way of a role that has the policy to S3; two videos and a file of questions are in the inputs."""
    folder = tmp_path_factory.mktemp("clips")
    inputs = Storage(ARCHIVE, s3=owner)
    for name in NAMES:
        inputs.put_file(write(Clip(name, even(100)), folder), name)
    questions = [{"question_id": str(n), "video": NAMES[n], "question": "What moves?"} for n in range(2)]
    inputs.write_bytes("questions.jsonl", "".join(json.dumps(each) + "\n" for each in questions).encode())
    Storage("s3://inputs/other", s3=owner).write_bytes("secret.mp4", b"of somebody else")
    with PolicyProxy(str(owner.endpoint), policy=load_policy()).running() as proxy:
        use_s3(S3Options(endpoint=proxy.endpoint, patience_s=20))
        yield proxy
    use_s3(S3Options())


def told(*arguments: str, code: int = 0, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out = capsys.readouterr()
    assert (ended.value.code or 0) == code, out
    return out.out + out.err


@pytest.mark.parametrize(
    ("line", "action", "resource", "prefix"),
    [
        ("GET /b?list-type=2&prefix=a%2F&encoding-type=url", "s3:ListBucket", "b", "a/"),
        ("HEAD /b", "s3:ListBucket", "b", None),
        ("GET /b?uploads&prefix=a%2F", "s3:ListBucketMultipartUploads", "b", None),
        ("GET /b/a/c%20d.mp4", "s3:GetObject", "b/a/c d.mp4", None),
        ("HEAD /b/a", "s3:GetObject", "b/a", None),
        ("PUT /b/a", "s3:PutObject", "b/a", None),
        ("PUT /b/a?partNumber=1&uploadId=x", "s3:PutObject", "b/a", None),
        ("POST /b/a?uploads", "s3:PutObject", "b/a", None),
        ("DELETE /b/a", "s3:DeleteObject", "b/a", None),
        ("DELETE /b/a?uploadId=x", "s3:AbortMultipartUpload", "b/a", None),
        ("PUT /b/a?acl", "", "b/a", None),
        ("GET /b?location", "", "b", None),
        ("POST /b?delete", "", "b", None),
        ("PUT /b", "", "b", None),
    ],
)
def test_a_request_is_known_for_what_it_asks(
    line: str, action: str, resource: str, prefix: str | None
) -> None:
    assert asked_by(line) == Asked(action, f"arn:aws:s3:::{resource}", prefix)


@pytest.mark.parametrize(
    "line",
    [
        "PUT /inputs/team/archive/one.mp4",
        "DELETE /inputs/team/archive/one.mp4",
        "POST /inputs/team/archive/one.mp4?uploads",
        "GET /inputs/other/secret.mp4",
        "GET /inputs/team/archive2/secret.mp4",
        "GET /inputs?list-type=2",
        "GET /inputs?list-type=2&prefix=",
        "GET /inputs?list-type=2&prefix=team%2F",
        "GET /outputs?list-type=2&prefix=team%2Fstores2%2F",
        "PUT /outputs/team/other",
        "DELETE /outputs/other/x",
        "HEAD /inputs",
        "DELETE /outputs",
        "PUT /outputs/team/stores/x?acl",
    ],
)
def test_the_policy_refuses(line: str) -> None:
    assert not allows(load_policy(), asked_by(line))


def test_index_answer_verify_and_gc_need_the_whole_policy_and_no_more(
    role: PolicyProxy, owner: S3Options, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = f"{STORES}/first", f"{STORES}/answers"
    here = {"s3_endpoint": role.endpoint, "s3_patience": 20.0}
    index = run_index(
        IndexConfig(
            store=store, model=str(tiny_model), paths=(ARCHIVE,), max_pixels=20_000, decoders_per_gpu="0", **here
        ),
        on_progress=lambda snapshot: None,
    )  # fmt: skip
    answer = run_answer(
        AnswerConfig(
            store=store, model=str(tiny_model), out=out, questions=f"{ARCHIVE}/questions.jsonl", budget="64",
            max_new_tokens=4, **here,
        ),
        on_progress=lambda snapshot: None,
    )  # fmt: skip
    assert index["store"] == {"ok": 2, "partial": 0, "failed": 0, "missing": 0}
    assert answer["run"]["questions"]["ok"] == 2
    capsys.readouterr()
    # What killed runs leave: a table file without a receipt, and an upload in parts.
    Storage(store).put_file(_file(tmp_path, PART_BYTES + 1), "tokens/left-0.parquet")
    left = {"Bucket": "outputs", "Key": "team/stores/first/tokens/left-1.parquet"}
    s3_client(owner)._ask("create_multipart_upload", **left)
    endpoint = ("--s3-endpoint", role.endpoint)
    assert "left-0" in told("verify", store, *endpoint, code=1, capsys=capsys)
    assert "removed" in told("gc", store, *endpoint, capsys=capsys)
    assert s3_client(owner).unfinished_uploads(S3Place("outputs", "team/")) == []
    assert "is sound" in told("verify", store, *endpoint, capsys=capsys)
    assert "is sound" in told("verify", out, *endpoint, capsys=capsys)
    assert "2 ok" in told("status", store, "--sources", *endpoint, capsys=capsys)
    granted = {
        action
        for statement in role.policy["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert role.used == granted
    # An object of the name of the prefix is looked for; no other request is in vain.
    assert {(each.action, each.resource) for each in role.refused} <= {
        ("s3:GetObject", "arn:aws:s3:::inputs/team/archive"),
        ("s3:ListBucket", "arn:aws:s3:::inputs"),
    }


def test_nothing_is_written_to_the_inputs(role: PolicyProxy, owner: S3Options) -> None:
    client, place = (
        s3_client(S3Options(endpoint=role.endpoint, patience_s=20)),
        S3Place("inputs", "team/archive/x"),
    )
    with pytest.raises(PermissionError):
        client.write(place, b"x")
    with pytest.raises(StoreError, match="grant this user access"):
        Storage(ARCHIVE).write_bytes("store.json", b"x")
    with pytest.raises(PermissionError):
        client.remove(S3Place("inputs", "team/archive/one.mp4"))
    kept = [found.key.rpartition("/")[2] for found in s3_client(owner).below(S3Place("inputs", "team/"))]
    assert sorted(kept) == [*NAMES[:1], "questions.jsonl", *NAMES[1:]]


@pytest.mark.parametrize("path", ["", "/", "/*.mp4", "/*", "/one.mp4", "/**/o*e.mp4"])
def test_videos_below_a_prefix_that_alone_may_be_listed(role: PolicyProxy, path: str) -> None:
    found = [source.uri.rpartition("/")[2] for source in list_sources([f"{ARCHIVE}{path}"])]
    assert found == list(NAMES) if path not in ("/one.mp4", "/**/o*e.mp4") else found == ["one.mp4"]
    assert list_sources([f"{ARCHIVE}/gone.mp4"])[0].size_bytes is None


@pytest.mark.parametrize(
    "url", ["s3://inputs/other", "s3://inputs/other/", "s3://inputs", "s3://inputs/other/secret.mp4"]
)
def test_videos_elsewhere_are_refused_with_one_line(role: PolicyProxy, url: str) -> None:
    with pytest.raises(ConfigError, match="cannot list s3://inputs"):
        list_sources([url])


def test_what_is_missing_is_told_from_what_is_forbidden(role: PolicyProxy, owner: S3Options) -> None:
    client = s3_client(S3Options(endpoint=role.endpoint, patience_s=20))
    assert not Storage(f"{STORES}/second").exists("store.json")
    assert client.head(S3Place("outputs", "team/stores/gone")) is None
    with pytest.raises(FileNotFoundError):
        client.read(S3Place("outputs", "team/stores/gone"))
    # Beside an object whose name begins alike.
    Storage(STORES, s3=owner).write_bytes("gone.mp4", b"x")
    assert client.head(S3Place("outputs", "team/stores/gone")) is None
    for place in (S3Place("inputs", "other/secret.mp4"), S3Place("inputs", "other/gone")):
        with pytest.raises(PermissionError):
            client.head(place)
        with pytest.raises(PermissionError):
            client.read(place)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


def _file(folder: Path, size: int) -> Path:
    (folder / "large").write_bytes(bytes(size))
    return folder / "large"
