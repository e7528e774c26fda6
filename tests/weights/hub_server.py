"""A stand-in of the Hugging Face Hub: repositories that can be created, committed to and read."""

import base64
import http.server
import json
import re


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's API that uploads and downloads use.

    `server.repositories` holds the committed files of each repository, `server.commits` the names
    of the files of each commit, `server.large` the uploaded contents by SHA-256, which are in no
    repository before they are committed. `server.refusals` maps the end of a path to a status.
    """

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        refusals = (s for end, s in self.server.refusals.items() if self.path.endswith(end))
        status = next(refusals, 200)
        self._answer(status, {"error": "no"} if status != 200 else self._result(body))

    def _result(self, body):
        if match := re.fullmatch(r"/api/models/(.+/.+)/commit/main", self.path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        if self.path.startswith("/upload/"):
            self.server.large[self.path.removeprefix("/upload/")] = body
            return {}
        request = json.loads(body)
        if self.path == "/api/repos/create":
            name = f"{request.get('organization', 'me')}/{request['name']}"
            self.server.repositories.setdefault(name, {})
            return {"url": f"{self.server.address}/{name}"}
        if self.path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            return {"files": [{"path": f["path"], "shouldIgnore": False,
                               "uploadMode": modes[f["path"].endswith(".safetensors")]}
                              for f in request["files"]]}  # fmt: skip
        assert self.path.endswith("/objects/batch"), self.path
        return {"transfer": "basic", "objects": [
            {**item, "actions": {"upload": {"href": f"{self.server.address}/upload/{item['oid']}"}}}
            for item in request["objects"]]}  # fmt: skip

    def _commit(self, repository, lines):
        files = {}
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.server.large[line["value"]["oid"]]
        self.server.repositories[repository] |= files
        self.server.commits.append(sorted(files))
        oid = f"{len(self.server.commits):040x}"
        return {"commitUrl": f"{self.server.address}/{repository}/commit/{oid}", "commitOid": oid}

    do_PUT = do_POST  # noqa: N815

    def do_GET(self):
        match = re.fullmatch(r"/(.+/.+)/resolve/(main|[0-9a-f]{40})/(.+)", self.path)
        content = self.server.repositories.get(match[1], {}).get(match[3]) if match else None
        if content is None:
            self._answer(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
        else:
            etag = {"ETag": f'"{abs(hash(content))}"'}
            self._answer(200, content, etag)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status, content, headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "X-Repo-Commit": "0" * 40} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass
