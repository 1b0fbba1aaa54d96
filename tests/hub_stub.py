"""A hub on this machine, as far as huggingface_hub's client asks for it: repositories in memory.

Files go up with the commit itself and come down whole; each commit is a state of its own.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_stub"


class Hub:
    """Repository → [(commit, {file: content})], oldest first; what was asked for, counted."""

    def __init__(self):
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.asked: Counter[str] = Counter()
        self.moving = False  # a commit more whenever it was asked what the newest is
        self.url = ""

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        """A commit whose files are those before and these; its hash."""
        states = self.repositories.setdefault(repository, [])
        state = {**(states[-1][1] if states else {}), **files}
        commit = hashlib.sha1(f"{repository}{len(states)}".encode()).hexdigest()
        states.append((commit, state))
        return commit

    def at(self, repository: str, revision: str):
        """(commit, files), or the hub's word for what is missing."""
        if repository not in self.repositories:
            return "RepoNotFound"
        states = self.repositories[repository]
        found = [s for s in states if s[0] == revision]
        found += states[-1:] if revision == "main" and states else []
        return found[0] if found else "RevisionNotFound"


def handler(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, value=None, status=200, headers=(), content=None):
            content = json.dumps(value).encode() if content is None else content
            self.send_response(status)
            for name, text in dict(headers).items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def missing(self, code):
            self.reply({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

        def do_GET(self):
            path = unquote(self.path.partition("?")[0])
            hub.asked[f"{self.command} {path}"] += 1
            if found := re.fullmatch(r"/api/models/(.+/.+)/refs", path):
                branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": "0" * 40}
                known = found[1] in hub.repositories
                told = {"branches": [branch] * known, "tags": [], "converts": []}
                return self.reply(told)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
                state = hub.at(found[1], found[2])
                if isinstance(state, str):
                    return self.missing(state)
                files = [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in state[1].items()
                ]
                return self.reply(files)
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                state = hub.at(found[1], found[2])
                if isinstance(state, str):
                    return self.missing(state)
                if found[3] not in state[1]:
                    return self.missing("EntryNotFound")
                if hub.moving and self.command == "HEAD":
                    hub.add(found[1], {"last": state[0].encode()})
                content = state[1][found[3]]
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.reply(
                    content=content, headers={"X-Repo-Commit": state[0], "ETag": etag}
                )
            return self.missing("EntryNotFound")

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self):
            path = unquote(self.path.partition("?")[0])
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.asked[f"POST {path}"] += 1
            if path == "/api/validate-yaml":
                return self.reply({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply({"error": "Invalid username or password."}, 401)
            if path == "/api/repos/create":
                told = json.loads(body)
                name = f"{told.get('organization') or 'me'}/{told['name']}"
                if name.startswith("others/"):
                    return self.reply({"error": "You don't have the rights"}, 403)
                hub.repositories.setdefault(name, [])
                return self.reply({"url": f"{hub.url}/{name}", "id": name, "name": name})
            if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
                return self.reply({"files": modes})
            if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                commit = hub.add(found[1], files)
                url = f"{hub.url}/{found[1]}/commit/{commit}"
                return self.reply({"commitUrl": url, "commitOid": commit, "success": True})
            return self.missing("EntryNotFound")

    return Handler


@contextmanager
def serving():
    """A hub at 127.0.0.1 while in here."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
