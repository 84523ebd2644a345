"""A server that speaks S3, on this machine alone, and threads that meet in it."""

from __future__ import annotations

import socket
import socketserver
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "2",  # so that a server that is gone is not waited for
    "NO_PROXY": "127.0.0.1",
}


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Call `work` with 0, 1, ... in as many threads at once; raise what one of them raised."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


@dataclass
class S3:
    """A running server with one empty bucket."""

    url: str
    """Of the bucket, such as ``s3://bucket``."""
    server: Any

    def stop(self) -> None:
        """Stop it, once."""
        if self.server is not None:
            self.server.stop()
            self.server = None


class Line(socketserver.ThreadingTCPServer):
    """A line to a server that breaks as often as it is told to, after the request and before the reply."""

    daemon_threads = True
    breaks = 0

    def __init__(self, port: int) -> None:
        self.port = port
        super().__init__(("127.0.0.1", 0), _Connection)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Connection(socketserver.BaseRequestHandler):
    server: Line

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as onward:
            asking = threading.Thread(target=_pass_on, args=(self.request, onward), daemon=True)
            asking.start()
            if self.server.breaks:
                self.server.breaks -= 1
                onward.recv(1)  # it was heard
                return
            _pass_on(onward, self.request)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while content := source.recv(1 << 16):
            target.sendall(content)
    except OSError:
        return


@contextmanager
def s3_line(s3: S3) -> Iterator[Line]:
    """Reach a server by a line that can break."""
    import s3fs

    with Line(s3.server.get_host_and_port()[1]) as line, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{line.server_address[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield line
        line.shutdown()
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def s3_server() -> Iterator[S3]:
    """Serve a bucket on a free port of the loopback, and point this process and its children there."""
    s3fs = pytest.importorskip("s3fs", reason='needs pip install "pytest-sdbench[s3]"')
    moto = pytest.importorskip("moto.server", reason='needs pip install "moto[server]"')
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # All servers of a process share their buckets.
    running = S3(f"s3://bucket-{uuid.uuid4().hex}", server)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**_ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        # fsspec keeps the connections to an earlier server.
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(running.url)
        yield running
        running.stop()
        s3fs.S3FileSystem.clear_instance_cache()
