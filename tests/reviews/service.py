"""A service over HTTP that says how a text sounds, in the form of TF Serving's REST API; some texts it cannot stand.

    python -m tests.reviews.service PORT

It refuses a text that holds REFUSE, fails (500) at FAIL, stalls at STALL and ends its process at CRASH.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = {"good": 1.0, "great": 2.0, "love": 2.0, "bad": -1.0, "cold": -1.0, "awful": -3.0}
VERSION = 3


def mood(text: str) -> float:
    """From 0 to 1."""
    found = sum(WORDS.get(word, 0.0) for word in text.lower().split())
    return 0.5 + found / (2 * (1 + abs(found)))


class Handler(BaseHTTPRequestHandler):
    """Answers ``POST /v1/models/mood/versions/3:predict`` and ``POST /score``; counts what it was asked."""

    calls: list[int]
    stall_s = 3.0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts: list[str] = body["instances"]
        self.calls.append(len(texts))
        status, answer = self.answer(texts)
        data = json.dumps(answer).encode()
        self.send_response(status)
        if status == 503:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, texts: list[str]) -> tuple[int, dict[str, Any]]:
        whole = " ".join(texts)
        if "CRASH" in whole:
            os._exit(1)
        if "STALL" in whole:
            time.sleep(self.stall_s)
        if "FAIL" in whole:
            return 500, {"error": "no idea"}
        if "REFUSE" in whole:
            return 400, {"error": "a word that is\nnot read here"}
        if self.path not in (f"/v1/models/mood/versions/{VERSION}:predict", "/score"):
            return 404, {"error": "no such version"}
        return 200, {"predictions": [mood(text) for text in texts], "model_version": str(VERSION)}

    def log_message(self, *_: Any) -> None:
        """Nothing to standard error."""


def serve(port: int, handler: type[Handler] | None = None) -> ThreadingHTTPServer:
    """A server on loopback, not yet running; its handler's ``calls`` say how many texts each call had."""
    own = type("Counting", (handler or Handler,), {"calls": []})
    return ThreadingHTTPServer(("127.0.0.1", port), own)


if __name__ == "__main__":
    server = serve(int(sys.argv[1]))
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()
