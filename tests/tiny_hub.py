"""A hub of data sets and models on this machine, with as much of the Hugging Face API as is asked for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a hub whose data set or model `own/set` is `folder`; `own/gated` is gated, there is no other."""

    def sibling(path: Path) -> dict[str, object]:
        nbytes, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        lfs = {"sha256": digest, "size": nbytes, "pointerSize": 1}
        return {"rfilename": path.name, "size": nbytes, "blobId": COMMIT, "lfs": lfs}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def file(self, name: str) -> None:
            path = folder / name
            if not path.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound")
            body = path.read_bytes()
            etag = hashlib.sha1(body).hexdigest()
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or len(body) - 1) + 1, len(body))
                place = f"bytes {start}-{stop - 1}/{len(body)}"
                return self.answer(206, body[start:stop], ETag=etag, Content_Range=place, Accept_Ranges="bytes")
            return self.answer(200, body, ETag=etag, Accept_Ranges="bytes")

        def entry(self, path: Path) -> dict[str, object]:
            kind = "directory" if path.is_dir() else "file"
            size = 0 if path.is_dir() else path.stat().st_size
            return {"type": kind, "oid": COMMIT, "size": size, "path": path.relative_to(folder).as_posix()}

        def respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(length)
            path = unquote(urlsplit(self.path).path)
            if "own/gated" in path:
                return self.answer(403, X_Error_Code="GatedRepo")
            if "own/set" not in path:
                return self.answer(404, X_Error_Code="RepoNotFound")
            kind, _, rest = path.partition("own/set")[2].removeprefix("/").partition("/")
            revision, _, name = rest.partition("/")
            if revision not in ("", "main", COMMIT):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            if kind == "resolve":
                return self.file(name)
            if kind in ("", "revision"):
                files = folder.iterdir() if "/models/" in path else ()
                siblings = list(map(sibling, files))
                body: object = {"id": "own/set", "sha": COMMIT, "siblings": siblings}
            elif kind == "tree":
                top = folder / name
                if not top.exists():
                    return self.answer(404, X_Error_Code="EntryNotFound")
                found = (
                    top.rglob("*") if "recursive=True" in self.path or "recursive=true" in self.path else top.iterdir()
                )
                body = [self.entry(path) for path in sorted(found)]
            elif kind == "paths-info":
                asked = json.loads(sent)["paths"] if sent.startswith(b"{") else []
                body = [self.entry(folder / path) for path in asked if (folder / path).exists()]
            else:
                return self.answer(404)
            return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

        do_GET = do_HEAD = do_POST = respond

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
