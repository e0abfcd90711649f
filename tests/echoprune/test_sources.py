from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.errors import ConfigError, MediaError
from echoprune.probe import scan_video
from echoprune.sources import Source, content_id, list_sources, video_id


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    for name in (
        "a b.mp4",
        "sub/ü.MKV",
        "sub/deep/z.webm",
        "notes.md",
        ".hidden.mp4",
        ".cache/c.mp4",
        "raw.dat",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def names(sources: list[Source], root: Path) -> list[str]:
    return [str(Path(source.uri).relative_to(root)) for source in sources]


def test_a_folder_is_searched_for_videos(archive: Path) -> None:
    found = list_sources([archive])
    assert names(found, archive) == ["a b.mp4", "sub/deep/z.webm", "sub/ü.MKV"]
    assert found[0] == Source(str(archive / "a b.mp4"), len("a b.mp4"))


def test_globs_mean_videos_unless_they_name_a_suffix(archive: Path) -> None:
    assert names(list_sources([f"{archive}/*"]), archive) == ["a b.mp4", "sub/deep/z.webm", "sub/ü.MKV"]
    assert names(list_sources([f"{archive}/**/*.webm"]), archive) == ["sub/deep/z.webm"]
    assert names(list_sources([f"{archive}/*.dat"]), archive) == ["raw.dat"]
    assert names(list_sources([f"{archive}/**"]), archive) == ["a b.mp4", "sub/deep/z.webm", "sub/ü.MKV"]


def test_a_file_with_magic_in_its_name_is_a_file(archive: Path) -> None:
    (archive / "clip[1].mp4").write_bytes(b"x")
    assert names(list_sources([archive / "clip[1].mp4"]), archive) == ["clip[1].mp4"]


def test_paths_are_made_canonical_and_duplicates_removed(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive)
    same = ["a b.mp4", "./sub/../a b.mp4", f"file://{archive}/a b.mp4", archive / "a b.mp4", "*.mp4"]
    assert list_sources(same) == [Source(str(archive / "a b.mp4"), 7)]


def test_a_named_file_is_taken_whatever_it_is(archive: Path) -> None:
    found = list_sources(
        [archive / "raw.dat", archive / "gone.mp4", archive / ".hidden.mp4", "https://h/x.mp4"]
    )
    assert found == sorted(
        [
            Source(str(archive / ".hidden.mp4"), 11),
            Source(str(archive / "gone.mp4"), None),
            Source(str(archive / "raw.dat"), 7),
            Source("https://h/x.mp4"),
        ]
    )


def test_links_to_folders_are_followed_once(archive: Path) -> None:
    (archive / "sub" / "loop").symlink_to(archive)
    other = archive.parent / "other"
    other.mkdir()
    (other / "linked.mp4").write_bytes(b"x")
    (archive / "z_link").symlink_to(other)
    assert names(list_sources([archive]), archive) == [
        "a b.mp4",
        "sub/deep/z.webm",
        "sub/ü.MKV",
        "z_link/linked.mp4",
    ]


def test_a_name_that_is_not_utf8_is_kept_readable(archive: Path) -> None:
    os.close(os.open(os.fsencode(archive) + b"/caf\xe9.mp4", os.O_CREAT))
    found = list_sources([archive])
    assert str(archive / "caf\\xe9.mp4") in [source.uri for source in found]
    assert len({source.video_id for source in found}) == 4
    with pytest.raises(
        MediaError, match="rename it, the escapes stand for bytes that are not UTF-8"
    ) as raised:
        scan_video(str(archive / "caf\\xe9.mp4"))
    assert raised.value.kind == "missing"
    url = os.fsdecode(b"https://host/caf\xe9.mp4")
    assert [source.uri for source in list_sources([url])] == ["https://host/caf\\xe9.mp4"]
    assert len(list_sources([url])[0].video_id) == 20


@pytest.mark.parametrize("kind", ["txt", "@list", "jsonl", "csv", "parquet"])
def test_manifests_name_videos(archive: Path, kind: str) -> None:
    path = archive / ("list" if kind == "@list" else f"list.{kind}")
    uris = ["a b.mp4", "https://host/x.mp4", "sub/gone.mp4", str(archive / "a b.mp4")]
    if kind in ("txt", "@list"):
        path.write_text("# my list\n\n" + "\n".join(uris) + "\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"uri": uri, "size_bytes": 7}) + "\n" for uri in uris))
    elif kind == "csv":
        path.write_text("uri,title\n" + "".join(f"{uri},x\n" for uri in uris))
    else:
        pq.write_table(pa.table({"uri": uris, "etag": ["e"] * 4}), path)
    found = list_sources([f"@{path}" if kind == "@list" else path])
    assert [source.uri for source in found] == sorted(
        [str(archive / "a b.mp4"), str(archive / "sub/gone.mp4"), "https://host/x.mp4"]
    )
    remote = found[-1]
    assert remote.size_bytes == (7 if kind == "jsonl" else None) and remote.etag == (
        "e" if kind == "parquet" else None
    )


def test_nothing_to_index_is_one_line_with_a_cure(archive: Path) -> None:
    (archive / "empty").mkdir()
    (archive / "bad.csv").write_text("path\nx\n")
    (archive / "none.txt").write_text("# nothing\n")
    cases = {
        str(archive / "empty"): "holds no video",
        f"{archive}/*.mpg": "holds no video",
        f"@{archive}/missing": "cannot read manifest",
        f"{archive}/missing.txt": "cannot read manifest",
        f"{archive}/bad.csv": "needs one column uri",
        f"{archive}/none.txt": "no videos in",
        "https://host/": "put the urls of its videos into a manifest",
    }
    for path, message in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            list_sources([path])
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="an empty list of paths"):
        list_sources([])


def test_ids_are_hashes(tmp_path: Path) -> None:
    assert video_id("/a.mp4") == hashlib.sha256(b"/a.mp4").hexdigest()[:20] == Source("/a.mp4").video_id
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    assert content_id(small) == hashlib.sha256((3).to_bytes(8, "little") + b"abc").hexdigest()[:32]
    data = bytearray(os.urandom(5 << 20))
    large.write_bytes(data)
    before = content_id(large)
    for offset, seen in ((0, True), (1 << 20, False), (5 << 19, True), (len(data) - 1, True)):
        changed = bytearray(data)
        changed[offset] ^= 1
        large.write_bytes(changed)
        assert (content_id(large) != before) == seen
    with pytest.raises(MediaError) as caught:
        content_id(tmp_path / "gone")
    assert (caught.value.stage, caught.value.kind) == ("probe", "missing")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everyone may enter: those of pytest are closed to others, and would hide what is tested."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, who may look anywhere."""
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
    except OSError:
        pytest.skip("root may not become nobody here")
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_looked_at_is_named(open_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (open_folder / "a.mp4").write_bytes(b"x")
    locked = open_folder / "lost+found"
    locked.mkdir(mode=0o700)
    (locked / "b.mp4").write_bytes(b"x")
    locked.chmod(0)
    with nobody(), caplog.at_level(logging.WARNING):
        assert list_sources([locked / "b.mp4"]) == [Source(str(locked / "b.mp4"), None)]
        assert list_sources([open_folder]) == [Source(str(open_folder / "a.mp4"), 1)]
        assert f"cannot list {locked}: Permission denied; its videos are left out" in caplog.text
        with pytest.raises(ConfigError, match=r"cannot list .*lost\+found: Permission denied"):
            list_sources([locked])
        assert list_sources([f"{open_folder}/*"]) == [Source(str(open_folder / "a.mp4"), 1)]


def test_a_file_that_may_not_be_read(open_folder: Path) -> None:
    path = open_folder / "a.mp4"
    path.write_bytes(b"x")
    path.chmod(0)
    with nobody():
        assert list_sources([path]) == [Source(str(path), 1)]
        for read in (content_id, scan_video):
            with pytest.raises(MediaError) as raised:
                read(str(path))
            assert (raised.value.stage, raised.value.kind) == ("probe", "unreadable")


def test_a_mistyped_path_is_no_failed_video(archive: Path) -> None:
    for name in ("vidoes", "sub/deep/z", "raw.data", "a b.mp4/x"):
        with pytest.raises(ConfigError, match=f"there is no file or folder {archive / name}: check the path"):
            list_sources([archive, archive / name])
    (archive / "dangling").symlink_to("nowhere")
    assert list_sources([archive / "dangling"]) == [Source(str(archive / "dangling"), None)]
