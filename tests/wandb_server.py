"""A W&B server on loopback that answers what a run needs, or fails as told."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("hang", "500", "401", "drop")  # drop: the connection is closed without an answer


class FakeServer:
    """Good until `fault` is set; counts what it was asked for, and keeps the history rows that it got."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.fault_after_rows: tuple[int, str] | None = None  # from so many history rows on
        self.asked: list[str] = []
        self.rows: list[dict] = []
        self.project = "normlab"
        self._ended = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server._answer(self)

            do_GET = do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more: connections are refused."""
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        fault = self.fault
        if fault is None:
            return _send(request, 200, self._good(request.path, body))
        self.asked.append(fault)
        if fault == "hang":
            self._ended.wait()
        if fault in ("hang", "drop"):
            request.close_connection = True
            return None
        return _send(request, int(fault), {"errors": [{"message": f"told to fail with {fault}"}]})

    def _good(self, path: str, body: bytes) -> dict:
        if not path.endswith("/graphql"):
            kind = "file_stream" if path.endswith("/file_stream") else "upload"
            self.asked.append(kind)
            return self._stream(json.loads(body)) if kind == "file_stream" else {}
        message = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", message["query"])[1]
        self.asked.append(operation)
        return {"data": self._data(operation, message.get("variables") or {})}

    def _stream(self, message: dict) -> dict:
        files = message.get("files") or {}
        self.rows += [json.loads(row) for row in files.get("wandb-history.jsonl", {}).get("content", ())]
        if self.fault_after_rows and len(self.rows) >= self.fault_after_rows[0]:
            self.fault = self.fault_after_rows[1]
        return {}

    def _data(self, operation: str, variables: dict) -> dict:
        entity = {"id": "entity", "name": "lab"}
        if operation == "UpsertBucket":
            project = {"id": "project", "name": self.project, "entity": entity}
            name = variables.get("name") or "run"
            bucket = {"id": "bucket", "name": name, "displayName": variables.get("displayName") or name}
            bucket |= {"description": "", "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}
        if operation == "Viewer":
            return {"viewer": entity | {"entity": "lab", "username": "lab", "flags": "{}", "teams": {"edges": []}}}
        return {"serverInfo": {"features": []}, "model": None, "organization": None}


def _send(request: BaseHTTPRequestHandler, status: int, content: dict) -> None:
    data = json.dumps(content).encode()
    try:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
    except ConnectionError:
        pass


@contextmanager
def fake_server():
    server = FakeServer()
    try:
        yield server
    finally:
        server.stop()
