"""Requests through a proxy that fails on purpose, to real servers: nothing half, nothing twice, nothing short."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from echoprune.backoff import Backoff, OutOfPatienceError
from echoprune.errors import ConfigError
from echoprune.s3_client import PART_BYTES, S3Client, s3_client
from echoprune.s3_options import S3Options, S3Place
from tests.s3_servers import FAULTS, FaultProxy, free_port

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def proxy(moto_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(moto_endpoint).running() as running:
        yield running


def client(endpoint: str, *, patience_s: float = 30.0) -> S3Client:
    # Short waits: the servers are on this machine.
    return S3Client(S3Options(endpoint=endpoint), Backoff(patience_s=patience_s, first_s=0.01, most_s=0.2))


def place(name: str = "") -> S3Place:
    return S3Place("bucket", f"{uuid.uuid4().hex}/{name}")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [1, 2])
def test_half_of_the_requests_failing_changes_nothing(
    proxy: FaultProxy, moto_endpoint: str, fault: str, seed: int
) -> None:
    folder = place()
    proxy.rate, proxy.seed, proxy.faults, proxy.slow_s = 0.5, seed, (fault,), 0.05
    proxy.__post_init__()
    through, direct = client(proxy.endpoint), client(moto_endpoint)
    data = {f"{i}": os.urandom(1000 + i) for i in range(6)}
    for name, content in data.items():
        through.write(S3Place("bucket", folder.key + name), content)
    places = [S3Place("bucket", folder.key + name) for name in data]
    assert through.read_many(places) == list(data.values()) == direct.read_many(places)
    assert [each.key for each in through.below(folder)] == [each.key for each in places]
    assert through.read(places[0], first=10, count=50).data == data["0"][10:60]
    assert through.read(places[0], first=-50).data == data["0"][-50:]
    assert through.head(places[1]) == direct.head(places[1])
    through.remove(places[0])
    assert through.head(places[0]) is None
    assert proxy.injected[fault] > 2
    if fault != "slow":
        # Fewer than were injected: a connection that had been idle is opened again below us, and HEAD has no body to cut.
        assert through.counts.retries > 0
        assert (through.counts.slow_downs > 0) == (fault in ("503", "429"))


def test_parts_of_a_large_file_survive_faults_and_it_appears_whole(
    proxy: FaultProxy, moto_endpoint: str, tmp_path: Path
) -> None:
    path, target = tmp_path / "large", place("large")
    data = os.urandom(2 * PART_BYTES + 12345)
    path.write_bytes(data)
    seen: list[bool] = []
    direct = client(moto_endpoint)
    # Ahead of each request, the one that completes the upload included.
    proxy.rate, proxy.faults = 0.3, ("503", "reset", "lost", "truncated")
    client(proxy.endpoint).put_file(path, target, before=lambda: seen.append(direct.head(target) is None))
    assert direct.read(target).data == data and direct.unfinished_uploads(target) == []
    assert len(seen) >= 5 and all(seen[:-1])
    assert sum(proxy.injected.values()) > 0


def test_an_upload_that_is_given_up_leaves_nothing(moto_endpoint: str, tmp_path: Path) -> None:
    path, target = tmp_path / "large", place("large")
    path.write_bytes(bytes(2 * PART_BYTES))
    direct, calls = client(moto_endpoint), []

    def before() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise ZeroDivisionError("the lease is another's")

    with pytest.raises(ZeroDivisionError):
        direct.put_file(path, target, before=before)
    assert direct.head(target) is None and direct.unfinished_uploads(target) == []


def test_an_unfinished_upload_is_seen_and_removed(moto_endpoint: str) -> None:
    direct, target = client(moto_endpoint), place("left")
    direct._ask("create_multipart_upload", Bucket=target.bucket, Key=target.key)
    ((key, upload_id),) = direct.unfinished_uploads(target)
    direct.abort(target.bucket, key, upload_id)
    assert direct.unfinished_uploads(target) == []


def test_a_creation_whose_answer_was_lost_is_still_ones_own(proxy: FaultProxy) -> None:
    asking = client(proxy.endpoint)
    proxy.rate, proxy.faults = 0.5, ("lost",)
    for _ in range(10):
        target = place("lease")
        assert asking.create(target, b"me") and not asking.create(target, b"you")
        assert asking.read(target).data == b"me"
    assert proxy.injected["lost"] > 5


@pytest.mark.parametrize("endpoint", ["moto_endpoint", "rclone_endpoint"])
def test_of_racing_creations_one_wins(request: pytest.FixtureRequest, endpoint: str) -> None:
    url = request.getfixturevalue(endpoint)
    asking, start = client(url), threading.Barrier(6)
    target, won = place("lease"), []

    def create(name: bytes) -> None:
        start.wait()
        if asking.create(target, name):
            won.append(name)

    threads = [threading.Thread(target=create, args=(b"%d" % i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [asking.read(target).data]


def test_a_service_that_is_away_for_a_while_is_waited_for(proxy: FaultProxy) -> None:
    asking, target = client(proxy.endpoint), place("x")
    proxy.down = True
    threading.Timer(1.5, lambda: setattr(proxy, "down", False)).start()
    begun = time.monotonic()
    asking.write(target, b"here")
    assert time.monotonic() - begun > 1.4 and asking.read(target).data == b"here"


def test_patience_ends_with_an_error_that_says_so() -> None:
    asking = client(f"http://127.0.0.1:{free_port()}", patience_s=1.0)
    begun = time.monotonic()
    with pytest.raises(OutOfPatienceError, match="attempts within"):
        asking.read(place("x"))
    assert time.monotonic() - begun < 5


def test_an_overload_lowers_what_is_under_way(proxy: FaultProxy) -> None:
    asking = client(proxy.endpoint)
    before = asking.limit.limit
    proxy.rate, proxy.faults = 0.6, ("503",)
    for i in range(5):
        asking.write(place(f"{i}"), b"x")
    assert asking.limit.limit < before


def test_what_is_refused_is_not_asked_for_again(proxy: FaultProxy) -> None:
    asking = client(proxy.endpoint)
    with pytest.raises(FileNotFoundError):
        asking.read(place("not there"))
    with pytest.raises(FileNotFoundError):
        asking.write(S3Place("no-such-bucket", "x"), b"")
    assert asking.counts.retries == 0
    with pytest.raises(ConfigError, match="cannot use S3"):
        asking.read(S3Place("Not A Bucket", "x"))


def test_an_empty_object_and_ranges_beyond_the_end(rclone_endpoint: str, moto_endpoint: str) -> None:
    for endpoint in (rclone_endpoint, moto_endpoint):
        asking, target = client(endpoint), place("x")
        asking.write(target, b"")
        assert asking.read(target).data == b"" == asking.read(target, first=-100).data
        asking.write(target, b"abc")
        assert asking.read(target, first=-100) == asking.read(target, first=0, count=100)
        assert asking.read(target, first=-100).data == b"abc"
        # A range outside of an object is an error, not an empty object.
        with pytest.raises(OSError):
            asking.read(target, first=10, count=5)


def test_wrong_credentials_are_an_error_that_shows_none(
    rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(ConfigError, match="refuses the credentials") as caught:
        client(rclone_endpoint).write(place("x"), b"")
    assert "hunter2" not in str(caught.value) + caplog.text


def test_an_unknown_profile_is_an_error_at_once(moto_endpoint: str) -> None:
    options = S3Options(endpoint=moto_endpoint, profile="nobody")
    with pytest.raises(ConfigError, match="nobody"):
        S3Client(options, Backoff()).head(place("x"))


def test_a_forked_child_gets_a_client_of_its_own(moto_endpoint: str) -> None:
    # In a process of its own: pytest has threads, and a child with theirs may hang for other reasons.
    code = """
import os, sys
from echoprune.s3_client import s3_client
from echoprune.s3_options import S3Options, S3Place
options = S3Options(endpoint=sys.argv[1], patience_s=20)
place = S3Place("bucket", "forked")
s3_client(options).write(place, b"parent")
child = os.fork()
if not child:
    data = s3_client(options).read(place).data
    os._exit(0 if data == b"parent" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert s3_client(options).read(place).data == b"parent"
"""
    subprocess.run([sys.executable, "-c", code, moto_endpoint], cwd=REPOSITORY, check=True, timeout=60)


def test_one_client_a_process_and_options(moto_endpoint: str) -> None:
    options = S3Options(endpoint=moto_endpoint)
    assert s3_client(options) is s3_client(S3Options(endpoint=moto_endpoint))
    assert s3_client(options) is not s3_client(S3Options(endpoint=moto_endpoint, patience_s=1))


class Paged(S3Client):
    """A client whose server answers in these pages. Neither test server cuts a list of uploads."""

    pages: ClassVar[list[dict[str, Any]]] = []

    def _ask(self, method: str, before: Any = None, size: int = 0, /, **asked: Any) -> dict[str, Any]:
        return self.pages[int(asked.get("KeyMarker") or asked.get("ContinuationToken") or 0)]


def test_a_list_in_pages_is_whole_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    paged, where = Paged(S3Options(), Backoff()), S3Place("bucket", "x/")
    uploads = [{"Uploads": [{"Key": f"x/{i}", "UploadId": "u"}], "IsTruncated": i < 2} for i in range(3)]
    for i, page in enumerate(uploads[:2]):
        page |= {"NextKeyMarker": str(i + 1), "NextUploadIdMarker": "u"}
    monkeypatch.setattr(Paged, "pages", uploads)
    assert paged.unfinished_uploads(where) == [("x/0", "u"), ("x/1", "u"), ("x/2", "u")]
    for token in ({}, {"NextContinuationToken": "0"}):
        monkeypatch.setattr(Paged, "pages", [{"Contents": [], "IsTruncated": True} | token])
        with pytest.raises(OSError, match="breaks off"):
            list(paged.below(where))


def test_every_request_says_who_pays_and_anonymous_ones_are_not_signed(
    moto_endpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    with FaultProxy(moto_endpoint).running() as proxy:
        paying = S3Client(S3Options(endpoint=proxy.endpoint, requester_pays=True, patience_s=20), Backoff())
        folder = place()
        one = S3Place("bucket", folder.key + "one")
        paying.write(one, b"x")
        paying.put_file(tmp_path / "large", S3Place("bucket", folder.key + "large"))
        assert paying.head(one) is not None and paying.read(one).data == b"x"
        assert len(list(paying.below(folder))) == 2
        paying.remove(one)
        assert (
            all(each.get("x-amz-request-payer") == "requester" for each in proxy.heard)
            and len(proxy.heard) > 7
        )
        proxy.heard.clear()
        S3Client(S3Options(endpoint=proxy.endpoint, anonymous=True, patience_s=20), Backoff()).head(one)
        assert [each.get("Authorization") for each in proxy.heard] == [None]
