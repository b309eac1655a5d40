"""The real package `huggingface_hub` against a hub of one repository on this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

FILES = {
    "model/config.json": b"{}",
    "model/weights.safetensors": b"weights",
    "model/pytorch_model.bin": b"a pickle",
    "gates.json": b"of the model before",
}
COMMIT = "a" * 40
TOKEN = "hf_canarycanarycanary"

UPLOAD = """
import sys
from pathlib import Path
from ups.hub import upload
replaces = 'gates.json', 'notes.txt'
print(upload(Path(sys.argv[1]), 'someone/burgers', private=True, message='a model', replaces=replaces))
"""
DOWNLOAD = "from ups.hub import download; print(download('hf://someone/burgers'))"


class Requests(BaseHTTPRequestHandler):
    """As much of the hub's protocol as uploading small files and fetching named ones takes."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Not on the terminal."""

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def as_json(self, content: Any) -> None:
        self.answer(json.dumps(content).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        place = self.path.split("?")[0]
        of_model = "/api/models/someone/burgers"
        name = place.removeprefix(f"/someone/burgers/resolve/{COMMIT}/")
        if place.startswith(f"{of_model}/tree/"):
            sizes = {name: {"size": len(content), "oid": sha(content)} for name, content in FILES.items()}
            self.as_json([{"type": "file", "path": name, **facts} for name, facts in sizes.items()])
        elif place.startswith(of_model):
            siblings = [{"rfilename": name} for name in FILES]
            self.as_json({"id": "someone/burgers", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif name in FILES:
            self.server.fetched.append(name)  # type: ignore[attr-defined]
            self.answer(FILES[name], ETag=f'"{sha(FILES[name])}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received[self.path] = body  # type: ignore[attr-defined]
        if "preupload" in self.path:
            asked = [file["path"] for file in json.loads(body)["files"]]
            self.as_json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]})
        else:
            address = f"http://127.0.0.1:{self.server.server_port}/someone/burgers"  # type: ignore[attr-defined]
            self.as_json({"url": address, "commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT})


def sha(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class Hub(ThreadingHTTPServer):
    """A hub, and what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.fetched: list[str] = []
        self.received: dict[str, bytes] = {}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def call(hub: Hub, home: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own: the package reads the address of its hub when it is imported."""
    address = f"http://127.0.0.1:{hub.server_port}"
    environment = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    environment |= {"HOME": str(home), "HF_HOME": str(home), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_folder_is_uploaded_whole(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "folder" / "model").mkdir(parents=True)
    (tmp_path / "folder" / "README.md").write_text("what it is")
    (tmp_path / "folder" / "model" / "weights.safetensors").write_bytes(b"weights")
    done = call(hub, tmp_path, UPLOAD, str(tmp_path / "folder"))
    assert done.stdout.split()[-1:] == [f"http://127.0.0.1:{hub.server_port}/someone/burgers"], done.stderr
    assert json.loads(hub.received["/api/repos/create"])["visibility"] == "private"
    lines = hub.received["/api/models/someone/burgers/commit/main"].splitlines()
    sent = [(json.loads(line)["key"], json.loads(line)["value"].get("path")) for line in lines]
    assert sent[0] == ("header", None)
    files = [("file", "README.md"), ("file", "model/weights.safetensors"), ("deletedFile", "gates.json")]
    assert sorted(sent[1:]) == sorted(files), "nothing else is taken away, and what is not there need not be"


def test_only_the_model_is_fetched(hub: Hub, tmp_path: Path) -> None:
    done = call(hub, tmp_path, DOWNLOAD)
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.split()[-1])
    assert (found / "model" / "weights.safetensors").read_bytes() == b"weights"
    assert set(hub.fetched) == {"model/config.json", "model/weights.safetensors"}


def test_what_goes_wrong_is_one_message_without_the_token(hub: Hub, tmp_path: Path) -> None:
    done = call(hub, tmp_path, DOWNLOAD.replace("burgers", "nothing"))
    last = done.stderr.strip().splitlines()[-1]
    assert "hf://someone/nothing cannot be fetched (RepositoryNotFoundError" in last
    assert TOKEN not in done.stdout + done.stderr
