"""The lease: one driver per store at a time.

`lease/<epoch>.json` says who holds the store. Taking over means making the file of the next epoch, which only
one of two racing processes can; the highest epoch is the current one. A holder rewrites its own file as a
heartbeat. Whoever puts files checks the epoch before each put, so that a driver that slept through its
successor's arrival writes nothing more. The lease keeps honest processes apart; it is no lock against others.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType

from echoprune.errors import StoreError
from echoprune.storage import Storage

_LOG = logging.getLogger(__name__)
_FOLDER = "lease"
HEARTBEAT_S = 5.0
# Six missed heartbeats: a put of 1 GiB to a slow disk must not look like death.
STALE_AFTER_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds the lease: the content of a lease file.

    `machine` is boot id and pid namespace: only where it is equal does `pid` mean the same process here.
    `process_start` is the kernel's start time of that pid, so that a reused pid is not taken for the holder.
    """

    run_id: str
    host: str
    pid: int
    process_start: str
    machine: str
    beats: int = 0
    heartbeat_at: float = 0.0
    released: bool = False

    @property
    def age_s(self) -> float:
        """Seconds since the last heartbeat by the wall clocks of both machines."""
        return max(0.0, time.time() - self.heartbeat_at)

    def __str__(self) -> str:
        return f"run {self.run_id} on {self.host}, pid {self.pid}, last heartbeat {self.age_s:.0f} s ago"


@dataclass
class Lease:
    """A held lease. Use as a context manager: heartbeats on entry, released on exit."""

    storage: Storage
    epoch: int
    holder: Holder
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    @classmethod
    def acquire(
        cls, storage: Storage, *, run_id: str, stale_after_s: float = STALE_AFTER_S, option: str = "--store"
    ) -> Lease:
        """The lease on a store, under the next epoch. `option`: the one that names the folder, for messages.

        A holder that released it, or whose process is gone on this machine, is followed at once. A holder
        elsewhere is watched until its heartbeat has stood still for `stale_after_s` (by this machine's clock,
        so that clocks need not agree); a heartbeat that moves meanwhile, or a living process on this machine,
        raises StoreError with host, pid and age. Of two processes that race one gets it.
        """
        me = _this_process(run_id)
        while True:
            epoch, holder = _current(storage)
            if holder is not None:
                _wait_until_free(storage, epoch, holder, stale_after_s=stale_after_s, option=option)
            mine = replace(me, heartbeat_at=time.time())
            # The second look: a process that was stopped between looking and making may have made a file
            # of an epoch that came, went and was cleaned away meanwhile.
            if storage.create_exclusive(_name(epoch + 1), _encode(mine)):
                if current_epoch(storage) == epoch + 1:
                    _remove_older(storage, epoch + 1)
                    return cls(storage, epoch + 1, mine)
                storage.remove(_name(epoch + 1))

    def start(self) -> None:
        """Begin heartbeats in a background thread."""
        self._thread = threading.Thread(target=self._beat_until_stopped, name="lease", daemon=True)
        self._thread.start()

    def heartbeat(self) -> None:
        """Show that this process lives. Raises StoreError if another run has taken the lease."""
        check(self.storage, self.epoch)
        self.holder = replace(self.holder, beats=self.holder.beats + 1, heartbeat_at=time.time())
        self.storage.write_bytes(_name(self.epoch), _encode(self.holder))

    def release(self) -> None:
        """Stop heartbeats and let the next run follow at once; nothing happens if the lease moved on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if current_epoch(self.storage) == self.epoch:
            # The file stays: epochs must never start again at 1, or an old actor's check would pass.
            self.holder = replace(self.holder, released=True)
            self.storage.write_bytes(_name(self.epoch), _encode(self.holder))

    def __enter__(self) -> Lease:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self.heartbeat()
            except StoreError as error:
                # Actors check the epoch themselves; a heartbeat that fails once may pass the next time.
                _LOG.warning("no heartbeat on %s: %s", self.storage.url, error)


def current_epoch(storage: Storage) -> int:
    """The epoch of the newest lease; 0 if the store never had one."""
    return max((_epoch_of(name) for name in _lease_files(storage)), default=0)


def check(storage: Storage, epoch: int) -> None:
    """Raise StoreError if the lease of `epoch` is no longer the newest. To be called before each put."""
    now = current_epoch(storage)
    if now != epoch:
        raise StoreError(
            f"another run took over {storage.url} (lease epoch {now}, this run has {epoch}): "
            "let that run finish, then run again"
        )


def _wait_until_free(
    storage: Storage, epoch: int, holder: Holder, *, stale_after_s: float, option: str
) -> None:
    """Return when the lease may be followed (or has moved on meanwhile); StoreError while its holder lives."""
    if holder.released:
        return
    if holder.machine == _machine() and holder.host == socket.gethostname():
        if _process_start(holder.pid) == holder.process_start:
            raise _held(storage, holder, option)
        return
    deadline = time.monotonic() + stale_after_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, stale_after_s / 10))
        now, seen = _current(storage)
        if now != epoch or seen is None or seen.released:
            return
        if seen.beats != holder.beats:
            raise _held(storage, seen, option)


def _held(storage: Storage, holder: Holder, option: str) -> StoreError:
    return StoreError(f"{storage.url} is held by {holder}: wait for it, stop it, or use another {option}")


def _lease_files(storage: Storage) -> list[str]:
    return [name for name in storage.names(_FOLDER) if name.endswith(".json") and Path(name).stem.isdigit()]


def _epoch_of(name: str) -> int:
    return int(Path(name).stem)


def _name(epoch: int) -> str:
    return f"{_FOLDER}/{epoch:08d}.json"


def _current(storage: Storage) -> tuple[int, Holder | None]:
    while True:
        epoch = current_epoch(storage)
        if epoch == 0:
            return 0, None
        name = _name(epoch)
        try:
            return epoch, _decode(storage.read_bytes(name), where=storage.url_of(name))
        except StoreError:
            # Cleaned away between listing and reading: a newer epoch is there, look again.
            if storage.exists(name):
                raise


def _remove_older(storage: Storage, epoch: int) -> None:
    for name in _lease_files(storage):
        if _epoch_of(name) < epoch:
            storage.remove(name)


def _encode(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=2) + "\n").encode()


def _decode(data: bytes, *, where: str) -> Holder:
    try:
        values = json.loads(data)
        if set(values) != {field.name for field in fields(Holder)}:
            raise ValueError(f"it has the fields {sorted(values)}")
        return Holder(**values)
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"lease {where} is damaged ({error}): remove it if no run uses this store"
        ) from error


def _this_process(run_id: str) -> Holder:
    pid = os.getpid()
    return Holder(
        run_id=run_id,
        host=socket.gethostname(),
        pid=pid,
        process_start=_process_start(pid),
        machine=_machine(),
    )


def _machine() -> str:
    """Boot id and pid namespace; "" where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """The kernel's start time of a process, "?" for a living one without /proc, "" for a dead one or a zombie."""
    try:
        # The command name, in brackets, may itself hold brackets and spaces.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except ProcessLookupError:
        return ""
    else:
        return "" if state in ("Z", "X") else rest[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "?"
    return "?"
