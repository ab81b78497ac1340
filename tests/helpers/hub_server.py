"""A small Hub on the loopback for the tests: repositories in memory, and what huggingface_hub asks in these flows.

Creating repositories and branches, checking cards, commits with regular and LFS files, listing, and downloads, whole
or in ranges. What it does not know it answers with 501, which fails the test.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

ID = r"(?P<kind>models/|datasets/)?(?P<id>[\w.-]+/[\w.-]+)"
REPO_ID = r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?"
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other", "unknown")
TASKS = ("image-segmentation", "image-classification")


class Refusal(Exception):
    """An answer that is no success. `code`: what huggingface_hub tells its errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit


def card_errors(content: str) -> list[str]:
    """What is wrong with the metadata of a model card."""
    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata are no mapping"]
    errors = []
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of {", ".join(LICENSES)}')
    if ("license_name" in data or "license_link" in data) and data.get("license") != "other":
        errors.append('"license_name" and "license_link" belong to "license: other"')
    if "license_link" in data and not re.match(r"https?://\S+$|LICENSE", str(data["license_link"])):
        errors.append('"license_link" must be an address or LICENSE')
    if "pipeline_tag" in data and data["pipeline_tag"] not in TASKS:
        errors.append('"pipeline_tag" is no task')
    if not isinstance(data.get("library_name", ""), str):
        errors.append('"library_name" must be a string')
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        errors.append('"tags" must be strings')
    for name in ("base_model", "datasets"):
        ids = data.get(name, [])
        for value in ids if isinstance(ids, list) else [ids]:
            if not isinstance(value, str) or not re.fullmatch(REPO_ID, value):
                errors.append(f'"{name}" must be ids on the Hub, not {value!r}')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append('"model-index" wants name and results')
            continue
        for result in model["results"]:
            if result["task"]["type"] not in TASKS:
                errors.append('"model-index[0].results[0].task.type" is no task')
            if not all(isinstance(result["dataset"].get(key), str) for key in ("type", "name")):
                errors.append('"model-index[0].results[0].dataset" wants type and name')
            for metric in result["metrics"]:
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), (int, float)):
                    errors.append('"model-index[0].results[0].metrics" want type and value')
    return errors


class Hub(ThreadingHTTPServer):
    """The server, running from its creation on. `me` owns "hf_me", which writes, and "hf_read", which reads.

    `requests`: "METHOD path" of all that was asked. `failing`: (pattern of such a line, status), answered so instead.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}"  # in life another host, which must not see the token
        self.repos: dict[str, Repo] = {}  # by "models/me/x"
        self.commits: dict[str, dict[str, str]] = {}  # id -> {path: hash of the content}
        self.contents: dict[str, bytes] = {}  # by sha256 (LFS) or by git's sha1
        self.requests: list[str] = []
        self.failing: tuple[str, int] | None = None
        self.lock = threading.RLock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def commit(self, repo: Repo, branch: str, files: dict[str, str]) -> str:
        oid = hashlib.sha1(f"{sorted(files.items())} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], repo.branches[branch] = files, oid
        return oid

    def keep(self, content: bytes) -> str:
        """Store a regular file; its name in git."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.contents[oid] = content
        return oid

    def files(self, repo_id: str, branch: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a branch holds, for tests to look at."""
        commit = self.commits[self.repos[f"{kind}/{repo_id}"].branches[branch]]
        return {path: self.contents[oid] for path, oid in commit.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        with self.server.lock:
            self.answer(f"{self.command} {path}")
        status, headers, content = self.answered  # sent without the lock: a client may read slowly
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(self, line: str) -> None:
        self.server.requests.append(line)
        try:
            if self.server.failing and re.search(self.server.failing[0], line):
                raise Refusal(self.server.failing[1], "refused for a test")
            for pattern, function in ROUTES.items():
                if match := re.fullmatch(pattern, line):
                    function(self, **match.groupdict())
                    return
            raise Refusal(501, f"{line} is unknown")
        except Refusal as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self.reply(json.dumps({"error": str(error)}).encode(), error.status, headers)

    def reply(self, content: bytes, status: int = 200, headers: dict | None = None) -> None:
        self.answered = status, {"Content-Type": "application/json"} | (headers or {}), content

    def json(self, value, status: int = 200) -> None:
        self.reply(json.dumps(value).encode(), status)

    # who asks, and for what

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def need_write(self, repo_id: str) -> None:
        if not self.token():
            raise Refusal(401, "Invalid username or password.")
        if self.token() != "hf_me" or not repo_id.startswith("me/"):
            raise Refusal(403, "You don't have the rights to write there")

    def repo(self, kind: str | None, repo_id: str) -> Repo:
        repo = self.server.repos.get(f"{kind or 'models/'}{repo_id}")
        if repo is None or (repo.private and self.token() not in ("hf_me", "hf_read")):
            raise Refusal(404 if self.token() else 401, "Repository not found", "RepoNotFound")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.branches.get(revision, revision)
        if commit not in self.server.commits:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return commit

    def entry(self, path: str, oid: str) -> dict:
        content = self.server.contents[oid]
        lfs = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 130}} if len(oid) == 64 else {}
        return {"type": "file", "path": path, "oid": oid[:40], "size": len(content)} | lfs

    # repositories

    def create(self) -> None:
        body = json.loads(self.body)
        repo_id = f"{body.get('organization') or 'me'}/{body['name']}"
        self.need_write(repo_id)
        prefix = "datasets/" if body.get("type") == "dataset" else ""
        answer = {"url": f"{self.server.url}/{prefix}{repo_id}", "name": repo_id}
        key = f"{prefix or 'models/'}{repo_id}"
        if key in self.server.repos:
            self.json(answer | {"error": "You already created this repo"}, 409)
            return
        repo = self.server.repos[key] = Repo(private=body.get("private") or body.get("visibility") == "private")
        self.server.commit(repo, "main", {".gitattributes": self.server.keep(b"*.safetensors filter=lfs\n")})
        self.json(answer)

    def branch(self, kind, id, name) -> None:
        self.need_write(id)
        repo = self.repo(kind, id)
        if name in repo.branches:
            raise Refusal(409, f"Reference refs/heads/{name} already exists")
        repo.branches[name] = repo.branches["main"]
        self.json({})

    def info(self, kind, id, revision=None) -> None:
        repo = self.repo(kind, id)
        commit = self.commit_of(repo, revision or "main")
        files = [{"rfilename": path} for path in self.server.commits[commit]]
        self.json({"id": id, "sha": commit, "private": repo.private, "tags": [], "siblings": files, "downloads": 0})

    def tree(self, kind, id, revision, folder=None) -> None:
        commit = self.server.commits[self.commit_of(self.repo(kind, id), revision)]
        start, everything = f"{folder}/" if folder else "", self.query.get("recursive") == ["true"]
        inside = {path: oid for path, oid in commit.items() if path.startswith(start)}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        found, folders = [], set()
        for path, oid in inside.items():
            name, deeper, _ = path.removeprefix(start).partition("/")
            if not deeper or everything:
                found.append(self.entry(path, oid))
            elif name not in folders:
                folders.add(name)
                found.append({"type": "directory", "path": start + name, "oid": "0" * 40, "size": 0})
        self.json(found)

    # uploads

    def validate(self) -> None:
        body = json.loads(self.body)
        errors = card_errors(body["content"]) if body["repoType"] == "model" else []
        if errors and "text/plain" in self.headers.get("Accept", ""):
            self.reply("\n".join(errors).encode(), 400, {"Content-Type": "text/plain"})
        else:
            listed = [{"message": error} for error in errors]
            self.json({"errors": listed, "warnings": []}, 400 if errors else 200)

    def preupload(self, kind, id, revision) -> None:
        self.need_write(id)
        there = self.server.commits[self.commit_of(self.repo(kind, id), revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            is_large = file["path"].endswith((".safetensors", ".parquet", ".png"))
            mode = {"uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            answers.append({"path": file["path"], "oid": there.get(file["path"])} | mode)
        self.json({"files": answers})

    def lfs_batch(self, kind, id) -> None:
        self.need_write(id)
        objects = [{"oid": file["oid"], "size": file["size"]} for file in json.loads(self.body)["objects"]]
        for file in objects:
            if file["oid"] not in self.server.contents:
                file["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{file['oid']}"}}
        self.json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content has another sha256")
        self.server.contents[oid] = self.body
        self.json({})

    def make_commit(self, kind, id, revision) -> None:
        self.need_write(id)
        repo, is_request = self.repo(kind, id), self.query.get("create_pr") == ["1"]
        files = dict(self.server.commits[self.commit_of(repo, revision)])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self.server.keep(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.contents:
                    raise Refusal(400, f"{value['path']} was not uploaded")
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] != "header":
                raise Refusal(501, f"{line['key']} is unknown")
        oid = self.server.commit(repo, "refs/pr/1" if is_request else revision, files)
        address = f"{self.server.url}/{'datasets/' if kind == 'datasets/' else ''}{id}"
        pull_request = {"pullRequestUrl": f"{address}/discussions/1"} if is_request else {}
        self.json({"commitOid": oid, "commitUrl": f"{address}/commit/{oid}", "success": True} | pull_request)

    # downloads

    def resolve(self, kind, id, revision, path) -> None:
        commit = self.commit_of(self.repo(kind, id), revision)
        oid = self.server.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if oid is None:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        if len(oid) == 64:
            size = len(self.server.contents[oid])
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(size)}
            self.reply(b"", 302, headers | {"Location": f"{self.server.storage}/lfs/{oid}"})
        else:
            self.reply(self.server.contents[oid], 200, headers | {"ETag": f'"{oid}"'})

    def lfs_get(self, oid) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "the storage got the token")
        content = self.server.contents[oid]
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            place = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            self.reply(content[first : last + 1], 206, place)
        else:
            self.reply(content, 200, {"ETag": f'"{oid}"'})


ROUTES = {
    r"POST /api/repos/create": Handler.create,
    r"POST /api/validate-yaml": Handler.validate,
    rf"GET /api/{ID}": Handler.info,
    rf"GET /api/{ID}/revision/(?P<revision>.+)": Handler.info,
    rf"GET /api/{ID}/tree/(?P<revision>refs/[^/]+/[^/]+|[^/]+)(/(?P<folder>.+))?": Handler.tree,
    rf"POST /api/{ID}/branch/(?P<name>.+)": Handler.branch,
    rf"POST /api/{ID}/preupload/(?P<revision>.+)": Handler.preupload,
    rf"POST /api/{ID}/commit/(?P<revision>.+)": Handler.make_commit,
    rf"POST /{ID}\.git/info/lfs/objects/batch": Handler.lfs_batch,
    r"PUT /lfs/(?P<oid>\w+)": Handler.lfs_put,
    r"(?:GET|HEAD) /lfs/(?P<oid>\w+)": Handler.lfs_get,
    rf"(?:GET|HEAD) /{ID}/resolve/(?P<revision>refs/[^/]+/[^/]+|[^/]+)/(?P<path>.+)": Handler.resolve,
}
