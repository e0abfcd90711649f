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
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType

from echoprune.backoff import hurried
from echoprune.errors import EchoPruneError, LeaseLostError, StoreError
from echoprune.storage import Storage

_LOG = logging.getLogger(__name__)
_FOLDER = "lease"
HEARTBEAT_S = 5.0
# Six missed heartbeats: a put of 1 GiB to a slow disk must not look like death.
STALE_AFTER_S = 30.0
# What a run that breaks or is interrupted may take for its report, and then for giving the lease back, where S3 is away.
PARTING_S = 5.0
# Store, epoch and run of leases that ended in this process, whatever their files say.
_ENDED: set[tuple[str, int, str]] = set()


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
    """A held lease. Use as a context manager: heartbeats on entry, released on exit.

    `took_over`: the holder before had not given it back, so that writers of its may live on.
    """

    storage: Storage
    epoch: int
    holder: Holder
    took_over: bool = False
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)
    _moving: threading.Lock = field(default_factory=threading.Lock, repr=False)

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
                    return cls(storage, epoch + 1, mine, took_over=holder is not None and not holder.released)
                storage.remove(_name(epoch + 1))

    def start(self) -> None:
        """Begin heartbeats in a background thread."""
        self._thread = threading.Thread(target=self._beat_until_stopped, name="lease", daemon=True)
        self._thread.start()

    def heartbeat(self) -> None:
        """Show that this process lives. Raises LeaseLostError if another run has taken the lease."""
        with self._moving:
            check(self.storage, self.epoch)
            self._beat()
            self.storage.write_bytes(_name(self.epoch), _encode(self.holder))

    def renew(self) -> None:
        """Go on under the next epoch: who still writes under this one puts nothing more. LeaseLostError if another run has it."""
        with self._moving:
            self._beat()
            while not self.storage.create_exclusive(_name(self.epoch + 1), _encode(self.holder)):
                check(self.storage, self.epoch)
            self.epoch += 1
            _remove_older(self.storage, self.epoch)

    def _beat(self) -> None:
        self.holder = replace(self.holder, beats=self.holder.beats + 1, heartbeat_at=time.time())

    def release(self) -> None:
        """Stop heartbeats and let the next run follow at once; nothing happens if the lease moved on.

        Where the file cannot be written (a full disk) the lease ends with the process, elsewhere with the heartbeats.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        _ENDED.add((self.storage.url, self.epoch, self.holder.run_id))
        try:
            if current_epoch(self.storage) == self.epoch:
                # The file stays: epochs must never start again at 1, or an old actor's check would pass.
                self.holder = replace(self.holder, released=True)
                self.storage.write_bytes(_name(self.epoch), _encode(self.holder))
        except EchoPruneError as error:
            # Not raised: it would hide what ended the run, or make a failure of a run that is complete.
            _LOG.warning("the lease on %s could not be given back: %s", self.storage.url, error)

    def __enter__(self) -> Lease:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who interrupts a run while its store is out of reach must not wait for it: the lease ends with the process anyway.
        with hurried(PARTING_S) if error else nullcontext():
            self.release()

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self.heartbeat()
            except EchoPruneError as error:
                # Actors check the epoch themselves; a heartbeat that fails once may pass the next time, also one for which
                # a role's credentials could not be had, which is a ConfigError.
                _LOG.warning("no heartbeat on %s: %s", self.storage.url, error)


def current_epoch(storage: Storage) -> int:
    """The epoch of the newest lease; 0 if the store never had one."""
    return max((_epoch_of(name) for name in _lease_files(storage)), default=0)


def check(storage: Storage, epoch: int) -> None:
    """Raise LeaseLostError if the lease of `epoch` is no longer the newest. To be called before each put."""
    now = current_epoch(storage)
    if now != epoch:
        raise LeaseLostError(
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
        ended = (storage.url, epoch, holder.run_id) in _ENDED
        if process_start(holder.pid) == holder.process_start and not ended:
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
        process_start=process_start(pid),
        machine=_machine(),
    )


def _machine() -> str:
    """Boot id and pid namespace; "" where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
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
