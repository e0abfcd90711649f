from __future__ import annotations

import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.answer_store import open_answers
from echoprune.errors import NotAStoreError, StoreError
from echoprune.local_files import LocalFiles
from echoprune.s3_options import S3Options, use_s3
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from pipelines.maintain import run_gc


@pytest.fixture(params=["local", "moto_endpoint", "rclone_endpoint"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(tmp_path / "store")
    options = S3Options(endpoint=request.getfixturevalue(request.param), patience_s=20)
    return Storage(f"s3://bucket/{uuid.uuid4().hex}/store", s3=options)


def test_a_file_is_written_read_listed_replaced_and_removed(storage: Storage) -> None:
    assert storage.names() == [] and not storage.exists("a/b.json")
    storage.write_bytes("a/b.json", b"one")
    storage.write_bytes("a/b.json", b"two")
    storage.write_bytes("c.json", b"three")
    assert storage.read_bytes("a/b.json") == b"two"
    assert storage.exists("a/b.json") and not storage.exists("a")
    assert storage.names() == ["a/b.json", "c.json"] and storage.names("a") == ["a/b.json"]
    assert storage.read_many(["c.json", "a/b.json"]) == {"a/b.json": b"two", "c.json": b"three"}
    assert storage.read_many(["c.json"]) == {"c.json": b"three"} and storage.read_many([]) == {}
    storage.remove("a/b.json")
    storage.remove("a/b.json")
    assert storage.names() == ["c.json"]


def test_only_the_first_exclusive_creation_wins(storage: Storage) -> None:
    assert storage.create_exclusive("lease/1.json", b"me")
    assert not storage.create_exclusive("lease/1.json", b"you")
    assert storage.read_bytes("lease/1.json") == b"me"


def test_a_built_file_is_moved_in_and_read_by_parquet(storage: Storage) -> None:
    table = pa.table({"x": [1, 2, 3]})
    with storage.tmp_dir() as folder:
        built = folder / "x.parquet"
        pq.write_table(table, built)
        assert storage.names() == []
        storage.put_file(built, "tokens/x.parquet")
        assert not built.exists()
    assert not folder.exists()
    with storage.open_input("tokens/x.parquet") as file:
        assert pq.read_table(file).equals(table)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", ".tmp/x", "a/.", "", "a\\b", "a\0b", "a/", "~"]
)
def test_names_cannot_leave_the_root_or_hide(storage: Storage, name: str) -> None:
    for act in (storage.read_bytes, storage.exists, storage.remove, storage.open_input, storage.url_of):
        # What is listed can be removed, though nothing of such a name is written or read.
        if act == storage.remove and name in ("a//b", "a\\b", "~"):
            continue
        with pytest.raises(StoreError, match="not a name inside a store"):
            act(name)


@pytest.mark.parametrize("name", ["tokens/clip (1).parquet", "tokens/ä+b%20#?.parquet", "tokens/a\\b", "~"])
def test_whatever_is_listed_can_be_removed(storage: Storage, name: str) -> None:
    storage._files.write(name, b"x", before=None)
    assert storage.names() == [name] and storage.sizes() == {name: 1}
    storage.remove(name)
    assert storage.names() == []
    with pytest.raises(StoreError, match="not a name inside a store"):
        storage.write_bytes(name, b"")


def test_a_missing_file_is_one_line_with_a_cure(storage: Storage) -> None:
    with pytest.raises(StoreError, match="no-such") as caught:
        storage.read_bytes("no-such")
    assert "\n" not in str(caught.value)


def test_pickling_opens_the_same_root(storage: Storage) -> None:
    storage.write_bytes("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("a") == b"1"


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    # The process's own file size limit makes the kernel refuse the write, as a full disk does.
    code = """
import resource, signal, sys
from echoprune.answer_store import open_answers
from echoprune.errors import NotAStoreError, StoreError
from echoprune.local_files import LocalFiles
from echoprune.s3_options import S3Options, use_s3
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from pipelines.maintain import run_gc
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
storage = Storage(sys.argv[1])
storage.write_bytes("x", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes("x", bytes(10000))
except StoreError as error:
    print(error)
print(storage.read_bytes("x"), storage.names())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    message, state = done.stdout.splitlines()
    assert "cannot write" in message and "File too large" in message
    assert state == "b'old' ['x']"
    assert list((tmp_path / ".tmp").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_store_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="grant this user access"):
            Storage(tmp_path).write_bytes("x", b"")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_a_folder_should_be_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot write"):
        Storage(tmp_path / "store").write_bytes("x", b"")


def test_an_unknown_scheme_is_a_store_error() -> None:
    with pytest.raises(StoreError, match="use a local folder or s3"):
        Storage("nosuchscheme://x")


def test_hidden_files_are_not_listed_and_tmp_is_cleared(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("a", b"")
    (tmp_path / ".tmp" / "left").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert storage.names() == ["a"]
    storage.clear_tmp()
    assert not (tmp_path / ".tmp").exists()


def test_sizes_and_unfinished_files(tmp_path: Path, s3_url: str) -> None:
    for where in (str(tmp_path / "local"), s3_url):
        storage = Storage(where)
        assert storage.sizes() == {} and storage.unfinished() == (0, 0)
        storage.write_bytes("tokens/a.parquet", b"abc")
        storage.write_bytes("store.json", b"{}")
        assert storage.sizes() == {"store.json": 2, "tokens/a.parquet": 3}
        assert storage.sizes("tokens") == {"tokens/a.parquet": 3}
    local = Storage(tmp_path / "local")
    with local.tmp_dir() as folder:
        (folder / "spill").write_bytes(b"12345")
        assert local.unfinished() == (1, 5) and "tokens/a.parquet" in local.sizes()
    assert local.unfinished() == (0, 0)


@pytest.mark.parametrize("endpoint", ["moto_endpoint", "rclone_endpoint"])
def test_a_bucket_that_is_missing_is_not_a_missing_store(
    request: pytest.FixtureRequest, endpoint: str
) -> None:
    use_s3(S3Options(endpoint=request.getfixturevalue(endpoint), patience_s=20))
    try:
        for call in (
            open_store,
            open_answers,
            lambda url: list(verify(url)),
            lambda url: run_gc(url, dry_run=True),
        ):
            with pytest.raises(NotAStoreError, match="bucket does not exist"):
                call("s3://no-such-bucket-here/store")
            with pytest.raises(NotAStoreError, match=r"store\.json|answers\.json"):
                call("s3://bucket/no such store")
        with pytest.raises(NotAStoreError, match="bucket does not exist"):
            Storage("s3://no-such-bucket-here/store").claim(
                "x.json", b"", lacks="it is no store", option="--store"
            )
    finally:
        use_s3(S3Options())


def test_a_sweep_meanwhile_does_not_break_a_write(tmp_path: Path) -> None:
    """The holder of the lease clears .tmp; its own heartbeat, or another's look at the lease, may have a file there."""

    class Swept(LocalFiles):
        sweeps = 0

        def _temporary(self, data: bytes) -> str:
            path = super()._temporary(data)
            if Swept.sweeps < 2:
                Swept.sweeps += 1
                self.clear_unfinished()
            return path

    files = Swept(str(tmp_path))
    for act in (lambda: files.write("x", b"1", before=None), lambda: files.create("y", b"1")):
        Swept.sweeps = 0
        act()
    assert files.read("x") == files.read("y") == b"1" and Swept.sweeps == 2
    # One that is taken stays taken, whoever cleared what.
    Swept.sweeps = 0
    assert not files.create("y", b"2") and files.read("y") == b"1"
    assert list((tmp_path / ".tmp").iterdir()) == []
