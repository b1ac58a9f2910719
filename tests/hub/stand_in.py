"""A stand-in for the Hub on this machine: the part of its HTTP interface that ``huggingface_hub`` calls for models.

Repositories live in memory. What it answers follows the client: the headers that it reads, and the error codes that it
turns into its exceptions.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

MAIN = "main"
LARGE = ".safetensors"  # files of this kind go by the protocol for large files, the others inside the commit


@dataclass
class Repo:
    """A repository: its branches and what every commit of them holds."""

    owner: str
    private: bool = False
    gated: bool = False
    branches: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)

    def commit(self, files, branch=MAIN):
        """A new commit on a branch; the commit's name."""
        name = hashlib.sha1(f"{id(self)}/{len(self.commits)}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(files), name
        return name

    def files(self, revision=MAIN):
        """The files of a branch or commit, None if there is no such."""
        return self.commits.get(self.branches.get(revision, revision))


class RefusedError(Exception):
    """An answer other than success."""

    def __init__(self, status, code=None, message="refused"):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class StandIn:
    """The server; a context manager that runs it.

    Attributes:
        repos: by ``owner/name``.
        users: whose a token is.
        granted: names that may read gated repositories.
        large: contents of large files by their digest.
        cut: digests of those whose download ends early.
        failing: status with which paths are answered, by pattern.
        requests: what was asked, as ``"METHOD path"``.
    """

    def __init__(self):
        self.repos, self.users, self.granted = {}, {"hf_me": "me", "hf_other": "other"}, set()
        self.failing, self.requests, self.large, self.cut = {}, [], {}, set()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Large files come from another host, to which the client sends no token.
        self.large_url = f"http://localhost:{self.server.server_port}/large"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """No one answers from now on; a second call does nothing."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def add(self, name, files, **kind):
        """A new repository with one commit; the commit's name."""
        repo = self.repos[name] = Repo(name.split("/")[0], **kind)
        return repo.commit(files)

    def asked(self, method):
        """The files asked for with this method since the last call of ``forget``; a large one as ``large``."""
        pattern = rf"{method} /(?:.+/resolve/[^/]+/(.+)|(large)/.+)"
        found = (re.fullmatch(pattern, request) for request in self.requests)
        return [match[1] or match[2] for match in found if match]

    def forget(self):
        """Starts the list of requests anew."""
        self.requests.clear()


ROUTES = []


def route(method, pattern):
    """The decorated method of ``Handler`` answers these requests; groups of the pattern are its arguments."""

    def add(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


class Handler(BaseHTTPRequestHandler):
    """One request; HTTP 1.0, so that no connection outlives the server."""

    hub: StandIn

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_):
        """Says nothing."""

    def answer(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        try:
            self.user = self.authenticated()
            for pattern, status in self.hub.failing.items():
                if re.search(pattern, path):
                    raise RefusedError(status, message="out of order")
            status, headers, body = self.routed(path)
        except RefusedError as error:
            status, headers, body = error.status, error.headers, json.dumps({"error": str(error)}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def routed(self, path):
        for method, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else ""):
                answer = function(self, *map(unquote, match.groups(MAIN)))
                return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        raise RefusedError(404, message=f"no such address: {self.command} {path}")

    def authenticated(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def readable(self, name):
        """A repository that this user may know of."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.user != repo.owner):
            raise RefusedError(404 if self.user else 401, "RepoNotFound", "Repository not found")
        return repo

    def writable(self, name):
        repo = self.readable(name)
        if self.user != repo.owner:
            raise RefusedError(403 if self.user else 401, message="You don't have the rights to write")
        return repo

    def at(self, repo, revision):
        files = repo.files(revision)
        if files is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files, {"X-Repo-Commit": repo.branches.get(revision, revision)}

    @route("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
    def resolve(self, name, revision, file):
        repo = self.readable(name)
        if repo.gated and self.user not in self.hub.granted:
            raise RefusedError(403 if self.user else 401, "GatedRepo", f"Access to model {name} is restricted")
        files, headers = self.at(repo, revision)
        if file not in files:
            refused = RefusedError(404, "EntryNotFound", "Entry not found")
            refused.headers |= headers
            raise refused
        content = files[file]
        digest = hashlib.sha256(content).hexdigest()
        if not file.endswith(LARGE):
            return 200, {**headers, "ETag": f'"{digest[:40]}"'}, content
        self.hub.large[digest] = content
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return 302, {**headers, **linked, "Location": f"{self.hub.large_url}/{digest}"}, b""

    @route("GET", r"/large/(.+)")
    def get_large(self, digest):
        assert self.user is None, "a token reached the store of large files"
        content = self.hub.large[digest]
        return 200, {}, content[: len(content) // 2] if digest in self.hub.cut else content

    @route("PUT", r"/large/(.+)")
    def put_large(self, digest):
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.hub.large[digest] = self.body
        return {}

    @route("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def large_files(self, name):
        self.writable(name)
        objects = json.loads(self.body)["objects"]
        where = [{"upload": {"href": f"{self.hub.large_url}/{entry['oid']}"}} for entry in objects]
        return {"objects": [{**entry, "actions": actions} for entry, actions in zip(objects, where, strict=True)]}

    @route("POST", r"/api/repos/create")
    def create(self):
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user
        if self.user is None or self.user != owner:
            raise RefusedError(403 if self.user else 401, message="You don't have the rights to create a model there")
        name = f"{owner}/{asked['name']}"
        if name in self.hub.repos:
            there = json.dumps({"url": f"{self.hub.url}/{name}"}).encode()
            return 409, {"X-Error-Message": "You already created this model repo"}, there
        self.hub.add(name, {}, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return {"url": f"{self.hub.url}/{name}"}

    @route("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
    def about(self, name, revision):
        repo = self.readable(name)
        files, headers = self.at(repo, revision)
        siblings = [{"rfilename": file} for file in files]
        return {"id": name, "sha": headers["X-Repo-Commit"], "private": repo.private, "siblings": siblings}

    @route("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
    def tree(self, name, revision):
        assert parse_qs(urlsplit(self.path).query).get("recursive") != ["False"]
        files, _ = self.at(self.readable(name), revision)
        entries = []
        for file, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            entry = {"type": "file", "path": file, "size": len(content), "oid": digest[:40]}
            large = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 134}} if file.endswith(LARGE) else {}
            entries.append({**entry, **large})
        return entries

    @route("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)")
    def branch(self, name, branch):
        repo = self.writable(name)
        if branch in repo.branches:
            raise RefusedError(409, message="Reference already exists")
        repo.branches[branch] = repo.branches[MAIN]
        return {}

    @route("POST", r"/api/validate-yaml")
    def validate(self):
        return {"errors": [], "warnings": []}

    @route("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)")
    def before_upload(self, name, revision):
        self.at(self.writable(name), revision)
        modes = {True: "lfs", False: "regular"}
        asked = [file["path"] for file in json.loads(self.body)["files"]]
        return {"files": [{"path": f, "uploadMode": modes[f.endswith(LARGE)], "shouldIgnore": False} for f in asked]}

    @route("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)")
    def commit(self, name, branch):
        repo = self.writable(name)
        files = dict(self.at(repo, branch)[0])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repo.commit(files, branch)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"}
