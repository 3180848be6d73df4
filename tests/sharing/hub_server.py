"""A server on loopback that speaks as much of the Hub's protocol as uploads and downloads need."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories in memory: ``{repository: [{name: bytes}, ...]}``, a commit after the other."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.cut = False  # break off in the middle of a download
        self.refuse = False  # answer uploads with 403

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """Of a revision: main, or the commit's number as 40 digits."""
        commits = self.repositories[repository]
        if revision == "main":
            return commits[-1] if commits else {}
        number = int(revision) if revision.isdigit() else len(commits)
        return commits[number] if number < len(commits) else None


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, data: Any = b"", **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut and "resolve" in self.path:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if len(parts) != 5 or parts[2] != "resolve":
            self.answer(404, {"error": "not here"})
            return
        repository, revision, name = "/".join(parts[:2]), parts[3], parts[4]
        if repository not in self.server.repositories:
            self.answer(401, {"error": "none"}, X_Error_Code="RepoNotFound")
            return
        files = self.server.files(repository, revision)
        if files is None:
            self.answer(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
        elif name not in files:
            self.answer(404, {"error": "none"}, X_Error_Code="EntryNotFound")
        else:
            data = files[name]
            commits = self.server.repositories[repository]
            commit = f"{len(commits) - 1 if revision == 'main' else int(revision):040d}"
            etag = hashlib.sha256(data).hexdigest()
            self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=commit)

    def do_POST(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        data = self.read()
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.server.refuse:
            self.answer(403, {"error": "you may not write here"})
        elif parts[:3] == ["api", "repos", "create"]:
            wanted = json.loads(data)
            name = wanted["name"]
            if wanted.get("organization"):
                name = f"{wanted['organization']}/{name}"
            known = name in self.server.repositories
            if not known:
                self.server.repositories[name] = []
                hidden = wanted.get("private") or wanted.get("visibility") == "private"
                self.server.private[name] = bool(hidden)
            self.answer(409 if known else 200, {"url": f"{self.server.address}/{name}"})
        elif parts[:1] == ["api"] and parts[-1] == "validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            found = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(data)["files"]
            ]
            self.answer(200, {"files": found})
        elif parts[4:5] == ["commit"]:
            self.commit("/".join(parts[2:4]), data)
        else:
            self.answer(404, {"error": self.path})

    def commit(self, repository: str, data: bytes) -> None:
        commits = self.server.repositories[repository]
        files = dict(commits[-1]) if commits else {}
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "header":
                self.server.messages.append(line["value"]["summary"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
            else:
                value = line["value"]
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
        commits.append(files)
        number = f"{len(commits) - 1:040d}"
        address = f"{self.server.address}/{repository}/commit/{number}"
        self.answer(200, {"success": True, "commitOid": number, "commitUrl": address})


@contextmanager
def serving() -> Iterator[Hub]:
    """A running server."""
    server = Hub()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
