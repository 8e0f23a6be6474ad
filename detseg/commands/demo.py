"""Serves a page that runs an exported file in the browser, on a phone too.

    detseg export RUN --format onnx
    detseg demo exports/NAME.onnx             open it here, or on a phone in the same network
    detseg demo exports/NAME.onnx --https     the live camera on a phone as well
    detseg demo exports/NAME.onnx --out DIR   only write the page, for any web server

The page runs on the device of whoever opens it. It takes uploaded, pasted, dropped and sample pictures, photos and the
live camera; no picture leaves the device. Browsers give the live camera and threads only to pages of this machine and
over https. At the first use npm fetches ONNX Runtime for browsers. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from detseg.cli import command_parser, exit_code
from detseg.demo.runtime import runtime_folder
from detseg.demo.serve import HOST, PORT, open_server, serve


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="a file of detseg export --format onnx")
    parser.add_argument("--images", nargs="+", default=[], metavar="DIR|GLOB|FILE",
                        help="sample pictures, which are copied beside the page (generated ones, where the file knows "
                             "their classes)")
    parser.add_argument("--port", type=int, metavar="P", help=f"{PORT}; 0 takes a free one")
    parser.add_argument("--host", metavar="ADDRESS",
                        help="listen at one address only, such as 127.0.0.1 (at all of this machine's)")
    parser.add_argument("--https", action="store_true",
                        help="with a certificate made by openssl, which browsers warn of")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the page there and stop")
    parser.add_argument("--runtime", type=Path, metavar="DIR",
                        help="the npm package onnxruntime-web, unpacked: for machines without npm")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _demo(build_parser().parse_args(arguments)))


def _demo(options: argparse.Namespace) -> None:
    if options.out is not None and (options.https or options.port is not None or options.host is not None):
        raise ValueError("--out only writes the page; leave --https, --port and --host to the server that will host it")
    from detseg.demo.page import open_for_page, write_page

    artefact = open_for_page(options.model)
    runtime = runtime_folder(options.runtime)
    if options.out is not None:
        number = write_page(options.out, artefact, runtime=runtime, images=options.images)
        print(f"{options.out}: {options.model} as a page with {number} sample pictures, for a web server")
        return
    host, port = options.host or HOST, PORT if options.port is None else options.port
    with (tempfile.TemporaryDirectory() as folder,
          open_server(Path(folder) / "page", host=host, port=port, https=options.https) as server):
        number = write_page(server.folder, artefact, runtime=runtime, images=options.images)
        print(f"{options.model} with {number} sample pictures; Ctrl-C ends it", *server.addresses, sep="\n  ")
        if not options.https:
            print("on other devices photos can be taken; --https gives them the live camera and threads too")
        sys.stdout.flush()
        serve(server)
