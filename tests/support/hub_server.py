"""A Hub on 127.0.0.1 with as much of the real one's protocol as huggingface_hub 2.4 and datasets 5.2 ask for, with or without Xet.

Datasets and models are made, private or not; files are uploaded (LFS in one part, those that are there already are not asked for),
committed all at once against the parent that the committer saw, listed and read at any commit.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_of_the_test"
LFS = re.compile(r"\.(parquet|arrow|zst|safetensors)$")


@dataclass
class Repository:
    """A dataset: its commits, oldest first, each with all its files; branches: names of the newest one."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    branches: tuple[str, ...] = ("main",)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision."""
        if revision in self.branches:
            return self.commits[-1]
        return next((one for one in self.commits if one[0] == revision), None)

    def commit(self, files: dict[str, bytes]) -> str:
        """Another commit with these files; its id."""
        told = json.dumps([len(self.commits), *sorted((name, git_oid(content)) for name, content in files.items())])
        self.commits.append((hashlib.sha1(told.encode()).hexdigest(), files))
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the newest commit."""
        return self.commits[-1][1]


def git_oid(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """The server. asked: "METHOD path" of every request; uploaded: the SHA-256 of what was uploaded, in order; before: called with both of
    every request, its result, a status, is the answer where it is one; ignored: what a .gitignore leaves out. cas: the folder in which Xet
    keeps what it uploads; the real Hub puts files together of that, this one looks for them, by SHA-256, in the folder `pushed`."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    uploaded: list[str] = field(default_factory=list)
    before: Callable[[str, str], int | None] = lambda method, path: None
    ignored: str = "$^"
    cas: Path | None = None
    pushed: Path | None = None

    def content(self, oid: str) -> bytes:
        """The content of a file that is not in git. KeyError where nobody uploaded it."""
        if self.cas is None or self.pushed is None:
            return self.objects[oid]
        files = (path.read_bytes() for path in self.pushed.rglob("*") if path.is_file())
        return {hashlib.sha256(content).hexdigest(): content for content in files}[oid]

    @property
    def environment(self) -> dict[str, str]:
        """Of processes that use this Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": str(int(self.cas is None)), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}


class _Answer(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _any(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.hub
        body = self._body()
        hub.asked.append(f"{self.command} {path}")
        status = hub.before(self.command, path)
        if status is not None:
            self._send(b"{}", status=status)
            return
        if "/xet-write-token/" in path and self._authorised():
            told = {"accessToken": "any", "exp": 1 << 32, "casUrl": f"local://{hub.cas}"}
            headers = {"X-Xet-Cas-Url": told["casUrl"], "X-Xet-Access-Token": "any", "X-Xet-Token-Expiration": str(told["exp"])}
            self._send(json.dumps(told).encode(), headers)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(json.dumps({"errors": [], "warnings": []}).encode())
        elif path.startswith("/lfs/"):
            self._upload(path, body)
        elif found := re.fullmatch(r"/(?:datasets/)?(.+?/.+?)\.git/info/lfs/objects/batch", path):
            self._batch(found[1], json.loads(body))
        elif found := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(
            r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(?:/(.*))?)?", path
        ):
            self._dataset(found[1], found[2] or "revision", found[3] or "main", found[4] or "", body)
        else:
            self._missing("RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _seen(self, name: str) -> Repository | None:
        """The dataset, where whoever asks may see it."""
        found = self.hub.repositories.get(name)
        return None if found is None or (found.private and not self._authorised()) else found

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self._authorised():
            self._send(b'{"error": "Invalid credentials"}', status=401)
        elif asked["organization"] == "others":
            self._send(b'{"error": "You don\'t have the rights"}', status=403)
        elif name in self.hub.repositories:
            self._send(b'{"error": "You already created this dataset repo"}', status=409)
        else:
            made = self.hub.repositories[name] = Repository(asked.get("visibility") == "private" or asked.get("private") is True)
            made.commit({".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"})
            self._send(json.dumps({"url": f"{self.hub.url}/datasets/{name}", "name": name, "id": name}).encode())

    def _dataset(self, name: str, what: str, revision: str, path: str, body: bytes) -> None:
        repository = self._seen(name)
        if repository is None:
            self._missing("RepoNotFound")
            return
        at = repository.at(revision)
        if at is None:
            self._missing("RevisionNotFound")
        elif what == "revision":
            told = {
                "id": name,
                "sha": at[0],
                "private": repository.private,
                "tags": [],
                "siblings": [{"rfilename": one} for one in at[1]],
            }
            self._send(json.dumps(told).encode())
        elif what == "tree":
            self._tree(at[1], path)
        elif what == "paths-info":
            asked = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
            self._send(json.dumps([_entry(one, at[1][one]) for one in asked if one in at[1]]).encode())
        elif what == "preupload":
            files = [self._mode(one, at[1]) for one in json.loads(body)["files"]]
            self._send(json.dumps({"files": files}).encode())
        else:
            self._commit(name, repository, at, [json.loads(line) for line in body.splitlines()])

    def _tree(self, files: dict[str, bytes], path: str) -> None:
        start = f"{path}/" if path else ""
        inside = {name: content for name, content in files.items() if name.startswith(start)}
        if path and not inside:
            self._missing("EntryNotFound")
            return
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1"):
            folders = {"/".join(name.split("/")[:end]) for name in inside for end in range(1, name.count("/") + 1)}
            entries = [_entry(name, content) for name, content in inside.items()]
        else:
            folders = {start + name.removeprefix(start).split("/")[0] for name in inside if "/" in name.removeprefix(start)}
            entries = [_entry(name, content) for name, content in inside.items() if "/" not in name.removeprefix(start)]
        known = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": one} for one in sorted(folders) if one != path]
        self._send(json.dumps([*known, *entries]).encode())

    def _mode(self, one: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        name, lfs = one["path"], LFS.search(one["path"]) is not None
        there = files.get(name)
        oid = None if there is None else hashlib.sha256(there).hexdigest() if lfs else git_oid(there)
        ignored = re.search(self.hub.ignored, name) is not None
        return {"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": ignored, "oid": oid}

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        if self._seen(name) is None or not self._authorised():
            self._send(b"{}", status=403)
            return
        told = []
        for one in asked["objects"]:
            wanted = {"href": f"{self.hub.url}/lfs/{one['oid']}"}
            there = (
                {}
                if one["oid"] in self.hub.objects
                else {"actions": {"upload": wanted, "verify": {"href": wanted["href"] + "/verify"}}}
            )
            told.append({**one, **there})
        self._send(json.dumps({"transfer": "basic", "objects": told}).encode())

    def _upload(self, path: str, body: bytes) -> None:
        oid = path.split("/")[2]
        if path.endswith("/verify"):
            fits = oid in self.hub.objects and len(self.hub.objects[oid]) == json.loads(body)["size"]
            self._send(b"{}", status=200 if fits else 400)
        elif hashlib.sha256(body).hexdigest() != oid:
            self._send(b"{}", status=400)
        else:
            self.hub.objects[oid] = body
            self.hub.uploaded.append(oid)
            self._send(b"")

    def _commit(self, name: str, repository: Repository, at: tuple[str, dict[str, bytes]], lines: list[dict[str, Any]]) -> None:
        parent = next(one["value"].get("parentCommit") for one in lines if one["key"] == "header")
        if parent not in (None, repository.commits[-1][0]):
            self._send(b'{"error": "A commit has happened since. Please refresh and try again."}', status=412)
            return
        files = dict(at[1])
        for one in lines:
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.hub.content(value["oid"])
            elif one["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.commit(files)
        self._send(
            json.dumps({"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{made}", "commitOid": made, "success": True}).encode()
        )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._seen(name)
        at = None if repository is None else repository.at(revision)
        if at is None:
            self._missing("RepoNotFound" if repository is None else "RevisionNotFound")
        elif path not in at[1]:
            self._missing("EntryNotFound", {"X-Repo-Commit": at[0]})
        else:
            content = at[1][path]
            lfs = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            headers = {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": at[0], "Accept-Ranges": "bytes"}
            self._send(content, headers | (lfs if LFS.search(path) else {}))

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(b"", {"X-Error-Code": code, **(headers or {})}, 404)

    def _send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and status == 200:
            start, end = int(asked[1]), int(asked[2] or len(body) - 1) + 1
            headers = {**(headers or {}), "Content-Range": f"bytes {start}-{min(end, len(body)) - 1}/{len(body)}"}
            body, status = body[start:end], 206
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as listings have it."""
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {"type": "file", "oid": git_oid(content), "size": len(content), "path": name} | (
        {"lfs": lfs} if LFS.search(name) else {}
    )


@contextmanager
def hub() -> Iterator[Hub]:
    """An empty Hub, running."""
    running = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Answer,), {"hub": running}))
    running.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_server(name: str, file: str, content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A Hub with one public dataset of one file, at COMMIT: its address, and what it was asked for."""
    with hub() as running:
        running.repositories[name] = Repository(False, [(COMMIT, {file: content})], ("main", "a-branch"))
        yield running.url, running.asked
