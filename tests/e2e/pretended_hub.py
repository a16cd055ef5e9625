"""A stand-in for the Hugging Face hub: as much of its protocol as an upload and a download need."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each its files; `made` are what was asked for them, `cards` those that were validated."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.made: list[dict[str, Any]] = []
        self.cards: list[str] = []
        self.refusal: tuple[int, str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is said."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.refusal is not None:
            self._answer({"error": self.server.refusal[1]}, self.server.refusal[0])
        elif self.path == "/api/repos/create":
            said = json.loads(body)
            self.server.made.append(said)
            name = "/".join(part for part in (said.get("organization"), said["name"]) if part)
            self.server.repositories.setdefault(name, {})
            self._answer({"url": f"{self.server.address}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            name = self.path.split("/api/models/")[1].split("/commit/")[0]
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[name][entry["value"]["path"]] = content
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            self._answer({"commitUrl": url, "commitOid": COMMIT, "hookOutput": "", "success": True})
        else:
            self._answer({"error": self.path}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        for name, files in self.server.repositories.items():
            if self.path.startswith(f"/api/models/{name}/tree/"):
                tree = [{"type": "file", "path": path, "size": len(files[path]), "oid": COMMIT} for path in files]
                return self._answer(tree)
            if self.path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": path} for path in files]
                return self._answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})
            if self.path.startswith(f"/{name}/resolve/"):
                content = files.get(self.path.partition("?")[0].split("/resolve/")[1].partition("/")[2])
                if content is not None:
                    return self._send(content, 200, {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": COMMIT})
        return self._answer({"error": "Repository not found"}, 404)

    def _answer(self, value: object, code: int = 200) -> None:
        missing = {"X-Error-Code": "RepoNotFound"} if code == 404 else {}
        self._send(json.dumps(value).encode(), code, {"Content-Type": "application/json", **missing})

    def _send(self, content: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
