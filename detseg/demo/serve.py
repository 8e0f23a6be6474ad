"""A web server for the page: for this machine and for phones in the same network."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

HOST = "0.0.0.0"
"""All addresses of this machine: the page is for the phone beside it."""
PORT = 8000


class PageHandler(SimpleHTTPRequestHandler):
    """Gives the files of a folder, and only these; says nothing of what goes well."""

    extensions_map: ClassVar[dict[str, str]] = {  # type: ignore[misc]
        # Not as the system has them: Windows' registry calls .js plain text at times, and browsers then refuse it.
        ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
        ".json": "application/json", ".mjs": "text/javascript; charset=utf-8", ".wasm": "application/wasm",
        ".bmp": "image/bmp", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
        "": "application/octet-stream"}

    def end_headers(self) -> None:
        """Isolated from other hosts, for threads; and asked for again, for another file may be served tomorrow."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def list_directory(self, path: Any) -> io.BytesIO | None:
        """No folder is listed."""
        self.send_error(404, "File not found")
        return None

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


class PageServer(ThreadingHTTPServer):
    """Serves a folder, which may come later than it, at `addresses`."""

    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int, *, certificate: ssl.SSLContext | None) -> None:
        super().__init__((host, port), partial(PageHandler, directory=str(folder)))
        self.folder = folder
        self.scheme = "http" if certificate is None else "https"
        if certificate is not None:
            # The handshake waits for the thread of its request: one slow phone would hold up all others.
            self.socket = certificate.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def addresses(self) -> list[str]:
        """Where it can be opened: on this machine, and on others where it listens to the network."""
        host, port = str(self.server_address[0]), int(self.server_address[1])
        hosts = [host] if host != HOST else ["localhost", *network_addresses()]
        return [f"{self.scheme}://{name}:{port}/" for name in hosts]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent about connections that break off, and browsers that do not know the certificate yet."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def open_server(folder: Path, *, host: str = HOST, port: int = PORT, https: bool = False) -> PageServer:
    """A server that listens already; `serve_forever` answers.

    Args:
        folder: the page.
        host: the address to listen at; 0.0.0.0 is all of this machine's.
        port: 0 takes a free one.
        https: with a certificate made now, which browsers warn of; live camera and threads need it on other devices.

    ValueError for a port or a host that cannot be, or is taken, and where openssl is missing.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, got {port}")
    certificate = _certificate(host) if https else None
    try:
        return PageServer(folder, host, port, certificate=certificate)
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} is in use by another program; choose one with --port, or let --port 0 take "
                             "a free one") from None
        if problem.errno == errno.EACCES:
            raise ValueError(f"port {port} is not for everybody to take; choose one from 1024 on with --port") from None
        if isinstance(problem, socket.gaierror) or problem.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"{host} is no address of this machine; leave --host out to listen at all") from None
        raise


def serve(server: PageServer) -> None:
    """Answers until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def network_addresses() -> list[str]:
    """This machine's address in its network, where it is in one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737); nothing is sent
        return [str(probe.getsockname()[0])]
    return []


def _certificate(host: str) -> ssl.SSLContext:
    """A certificate for this machine's addresses that nobody has signed, good for 30 days; its key is never kept."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise ValueError("--https makes a certificate with the program openssl, which is not installed; install it, or "
                         "leave --https out: photos can be taken without")
    addresses = {"127.0.0.1", *network_addresses()} | ({host} if host[:1].isdigit() and host != HOST else set())
    names = ",".join(["DNS:localhost", *(f"IP:{address}" for address in sorted(addresses))])
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
        done = subprocess.run(
            [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
             "-subj", "/CN=detseg demo", "-addext", f"subjectAltName={names}", "-keyout", str(key), "-out",
             str(certificate)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = next(iter(done.stderr.strip().splitlines()[-1:]), "it says nothing")
            raise OSError(f"openssl made no certificate ({last}); leave --https out: photos can be taken without")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    return context
