"""Which videos an archive holds: paths, folders, globs and manifests become a sorted list of sources.

Nothing is opened but manifests; a file that cannot be read later becomes a failed row, not an error here.
Ids of videos live here too. What lies in S3 is listed in s3_sources.py, what is done with the list is in plan.py.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from echoprune.credentials import without_secrets
from echoprune.cycles import no_search_for_cycles
from echoprune.errors import ConfigError, MediaError
from echoprune.manifest import MANIFEST_SUFFIXES, read_manifest
from echoprune.s3_options import S3Options, is_s3, require_whole_scheme, s3_place

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .divx .flv .m2ts .m2v .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()  # noqa: SIM905  (one line, not 21)
)
_SAMPLE_BYTES = 1 << 20

Found = TypeVar("Found")


class Source(NamedTuple):
    """One video to be indexed. `uri`: absolute local path, or a URL as given. `size_bytes` None: not known.

    `etag`: of an object in S3, what its content is known by, without quotes.
    """

    uri: str
    size_bytes: int | None = None
    etag: str | None = None

    @property
    def video_id(self) -> str:
        """Its id in every table."""
        return video_id(self.uri)


def video_id(uri: str) -> str:
    """20 hex digits of the sha256 of the canonical uri: the same file under another path is another video."""
    return hashlib.sha256(uri.encode()).hexdigest()[:20]


def content_id(path: str | os.PathLike[str]) -> str:
    """32 hex digits that follow the content, not the path: to find copies and moved files.

    sha256 over the size (8 bytes, little-endian) and three stretches of 1 MiB: at the start, in the middle
    (from (size - 1 MiB) // 2), and at the end; of a file up to 3 MiB the whole. Raises MediaError where the
    file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(size.to_bytes(8, "little"))
            if size <= 3 * _SAMPLE_BYTES:
                digest.update(file.read())
            else:
                for offset in (0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES):
                    file.seek(offset)
                    digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        reason = error.strerror or str(error)
        raise MediaError(f"cannot read {os.fspath(path)}: {reason}", stage="probe", kind=kind) from error
    return digest.hexdigest()[:32]


@no_search_for_cycles()
def list_sources(paths: Iterable[str | os.PathLike[str]], *, s3: S3Options | None = None) -> list[Source]:
    r"""The videos that `paths` name, sorted by uri, each once.

    A path is a file (of any suffix), a folder (searched below for VIDEO_SUFFIXES), a glob (`**` recurses), a
    URL of one video, or a manifest (manifest.py): `@file`, or a file ending in .txt, .jsonl, .csv or .parquet; its
    relative paths start at its folder. Hidden files are skipped in folders and globs. All of these may be s3:// URLs, for
    which `s3` says how to reach them (None: as this process does); their sizes and etags are looked up where a
    manifest does not give them.

    A missing file stays, with size None, so that it is reported as a failed video, if it has a video's suffix or
    stands in a manifest. So does a name that is not UTF-8, with escapes such as \xe9 in its uri: a uri is text in
    Parquet. A folder that may not be listed below one that may (such as lost+found) is left out with a warning: what
    is in it becomes part of the plan when a later run may look. ConfigError for a folder or glob without a video,
    one that may not be listed, any other path that is missing, a missing or wrong manifest, no path at all.
    """
    found: dict[str, Source] = {}
    given = [os.fspath(path) for path in paths]
    for path in given:
        for source in _expand(path, s3):
            found.setdefault(source.uri, source)
    if not found:
        raise ConfigError(
            f"no videos in {', '.join(given) or 'an empty list of paths'}: name a file, folder or manifest"
        )
    return sorted(found.values(), key=lambda source: source.uri)


def _expand(path: str, s3: S3Options | None) -> Iterable[Source]:
    require_whole_scheme(path)
    manifest = path[1:] if path.startswith("@") and not Path(path).exists() else None
    if manifest is None and Path(path).suffix.lower() in MANIFEST_SUFFIXES:
        manifest = path if is_s3(path) or not _is_url(path) else None
    if manifest is not None:
        return _of_manifest(manifest, s3)
    if is_s3(path):
        # Loads s3fs, which takes half a second.
        from echoprune.s3_sources import search_s3  # noqa: PLC0415

        found = search_s3(_text(path), is_video=_is_video, s3=s3)
        return [Source(*each) for each in _not_empty(found, path, "s3:// prefix or glob")]
    if _is_url(path):
        shown = without_secrets(path)
        if shown.endswith("/") or glob.has_magic(shown):
            raise ConfigError(
                f"{shown} cannot be listed: put the urls of its videos into a manifest and pass @manifest"
            )
        return [Source(_text(shown))]
    local = path.removeprefix("file://")
    if _is_folder(Path(local)):
        return _not_empty(_search(local, set(), named=True), local, "folder")
    if glob.has_magic(local) and not os.path.lexists(local):
        return _not_empty(_match(local), local, "glob")
    if not _is_video(local) and not os.path.lexists(local):
        raise ConfigError(
            f"there is no file or folder {_text(local)}: check the path (a missing video, with a suffix such as .mp4, "
            "would be a failed row)"
        )
    return [_local(local)]


def _not_empty(sources: Iterable[Found], path: str, kind: str) -> list[Found]:
    found = list(sources)
    if not found:
        raise ConfigError(
            f"{kind} {path} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))}): "
            "check the path, or name files of other suffixes one by one"
        )
    return found


def _search(folder: str, seen: set[tuple[int, int]], *, named: bool = False) -> Iterator[Source]:
    """Videos below a folder; links to folders are followed, each folder once, so that a loop of links ends.

    One that may not be listed is an error if it was `named` itself, else a warning.
    """
    try:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as scan:
            entries = sorted(
                (entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        reason = f"cannot list {_text(folder)}: {error.strerror}"
        if named:
            raise ConfigError(f"{reason}; grant access, or name other paths") from error
        _log.warning("%s; its videos are left out, run again when it can be listed", reason)
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _search(entry.path, seen)
        elif _is_video(entry.name):
            yield _local(entry.path)


def _match(pattern: str) -> Iterator[Source]:
    # A pattern with a suffix of its own, such as *.dat, means what it says; clips/* means videos.
    literal = Path(pattern).suffix
    anything = bool(literal) and not glob.has_magic(literal)
    for path in glob.iglob(pattern, recursive=True):  # noqa: PTH207  (Path.glob takes no absolute pattern)
        if _is_folder(Path(path)):
            if "**" not in pattern:
                yield from _search(path, set())
        elif anything or _is_video(path):
            yield _local(path)


def _of_manifest(path: str, s3: S3Options | None) -> list[Source]:
    rows = read_manifest(path, s3=s3)
    base = path.rpartition("/")[0] if is_s3(path) else str(Path(path).absolute().parent)
    found = []
    for uri, size, etag in rows:
        if _is_url(uri):
            if is_s3(uri):
                s3_place(uri)  # refused here if it holds credentials: later it would be stored
            found.append(Source(without_secrets(uri), size, etag))
        elif is_s3(base):
            # As in a local one: `find .` writes ./clip.mp4.
            found.append(Source(f"{base}/{posixpath.normpath(uri)}", size, etag))
        else:
            found.append(_local(str(Path(base) / uri.removeprefix("file://")), size, etag))
    unknown = [at for at, each in enumerate(found) if each.size_bytes is None and is_s3(each.uri)]
    if unknown:
        from echoprune.s3_sources import look_up  # noqa: PLC0415

        looked_up = look_up([found[at].uri for at in unknown], s3=s3)
        for at, (size, etag) in zip(unknown, looked_up, strict=True):
            found[at] = found[at]._replace(size_bytes=size, etag=found[at].etag or etag)
    return found


def _local(path: str, size_bytes: int | None = None, etag: str | None = None) -> Source:
    whole = os.path.abspath(path)  # noqa: PTH100  (normalises "..", without following links as Path.resolve does)
    if size_bytes is None:
        try:
            status = Path(whole).stat()
            size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
        except (OSError, ValueError):
            size_bytes = None
    return Source(_text(whole), size_bytes, etag)


def _text(path: str) -> str:
    r"""`path` with bytes that are not UTF-8 as escapes, such as \xe9: it then names no file, and fails as missing."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122  (5x faster than Path over 1e6 names)


def _is_folder(path: Path | os.DirEntry[str]) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # Not ours to look at: taken as a file, which then fails by name.
        return False


def _is_url(path: str) -> bool:
    return "://" in path and not path.startswith("file://")
