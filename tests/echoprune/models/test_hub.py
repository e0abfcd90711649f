"""The hub: the real client, in its own process, against a server of this test."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from echoprune.models import fingerprint

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """The few answers of a model hub that a download needs, for one repository owner/tiny."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.folder = folder
        self.fetched: list[str] = []


class HubRequest(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        files = sorted(file.name for file in self.server.folder.iterdir())
        name = path.rsplit("/", 1)[1]
        if path.startswith("/api/models/owner/tiny/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": file,
                    "oid": "0" * 40,
                    "size": (self.server.folder / file).stat().st_size,
                }
                for file in files
            ]
            self.reply(json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/owner/tiny"):
            listing = {
                "id": "owner/tiny",
                "sha": REVISION,
                "siblings": [{"rfilename": file} for file in files],
            }
            self.reply(json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/owner/tiny/resolve/{REVISION}/") and name in files:
            if self.command == "GET":
                self.server.fetched.append(name)
            self.reply(
                (self.server.folder / name).read_bytes(), {"X-Repo-Commit": REVISION, "ETag": f'"{name}"'}
            )
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def reply(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: pytest shows what the client says."""


@pytest.fixture
def hub(sharded: Path) -> Iterator[Hub]:
    server = Hub(sharded)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def in_own_process(code: str, cache: Path, **environment: str) -> str:
    """Output of `code` in a fresh interpreter: the hub client reads its environment once, when imported."""
    run = subprocess.run(
        [sys.executable, "-c", "from echoprune.models import *\nfrom echoprune.errors import *\n" + code],
        env=os.environ
        | {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


CODE_FAILURE = """
try: model_settings("owner/absent")
except ModelError as error: print(error)
"""


def test_hub_download_takes_vision_files_only(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    where = f"http://127.0.0.1:{hub.server_port}"
    settings = in_own_process(
        "print(model_settings('owner/tiny').dim)", tmp_path / "cache", HF_ENDPOINT=where
    )
    assert settings == "64"
    assert not any(name.endswith(".safetensors") for name in hub.fetched)
    code = "load_encoder('owner/tiny', segment_cells=1); print(fingerprint('owner/tiny'))"
    assert in_own_process(code, tmp_path / "cache", HF_ENDPOINT=where) == fingerprint(str(tiny))
    weights = {name for name in hub.fetched if name.endswith(".safetensors")}
    assert weights == {"model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"}
    # From now on the network is not needed.
    assert in_own_process(code, tmp_path / "cache", HF_HUB_OFFLINE="1") == fingerprint(str(tiny))
    absent = in_own_process(CODE_FAILURE, tmp_path / "cache", HF_ENDPOINT=where)
    assert absent.startswith(
        "model owner/absent not found: no such folder, and the hub gave RepositoryNotFoundError"
    )


def test_hub_out_of_reach(tmp_path: Path) -> None:
    message = in_own_process(CODE_FAILURE, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert message.startswith("model owner/absent not found") and "pass the folder" in message
    assert "\n" not in message
