"""The browser demo: what is written and served, what is refused, and whether the page says what Python says.

JavaScript's resize runs in node, the page in Chromium; where these are missing, their tests are skipped.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import http.client
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

import detseg
from detseg.api import Boxes, LabelMap
from detseg.choices import CONTRACTS
from detseg.demo import runtime as runtimes
from detseg.demo.page import MOST_SAMPLES, PAGE_FILES, described, open_for_page, write_page
from detseg.demo.runtime import FILES, runtime_folder
from detseg.demo.serve import PageServer, network_addresses, open_server
from detseg.export.convert import Source, export
from detseg.export.formats import format_named
from detseg.export.formats.onnx import FORMAT
from detseg.report.pictures import write_picture
from detseg.resize import Letterbox, Resize, Rounded, Stretch, TensorFlowStretch
from detseg.structures import USUAL_THRESHOLD, ImageDetections, Pixels, Threshold

from . import browser, discovery, micro
from .commands import run
from .conftest import ROOT

WEB = ROOT / "detseg" / "demo" / "web"
PICTURES = micro.scenes(4, seed=1)
KINDS: Mapping[str, tuple[str, type[Stretch | Letterbox], Mapping[str, Any]]] = {
    "boxes-bytes": ("ssdlite", Letterbox, {}),
    "boxes-floats": ("ssdlite", Stretch, {"pixels": "float", "layout": "nchw"}),
    "labels-bytes": ("lraspp", Stretch, {"layout": "nchw"}),
    "labels-floats": ("lraspp", Letterbox, {"pixels": "float", "dynamic_batch": True}),
}
"""Files for the page: a head, its resize, and what they take."""
THRESHOLDS = {"boxes-bytes": {"nut": 0.65, "bolt": 0.3}}
"""What was measured of a file's classes. Single precision has 0.65 below it and 0.3 above."""

pytestmark = [pytest.mark.conversion, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the file of one of `KINDS`."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def write(kind: str, name: str = "onnx") -> Path:
        head, resize, changes = KINDS[kind]
        predictor, task = micro.network(head)
        predictor.resize = resize(micro.SIZE, fill=(200, 30, 90))
        target = format_named(name)
        options = replace(target.usual_options(), **changes)
        path = folder / f"{kind}{target.suffix}"
        made = Source(predictor, task, f"runs/{kind}/best.pt", thresholds=THRESHOLDS.get(kind))
        export(made, path, target, options, images=PICTURES)
        return path

    return write


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder with files of the runtime's names."""
    folder = tmp_path / "package" / "dist"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(name)
    return folder


# ------------------------------------------------------------------------------------------ the page as a folder


def test_everything_that_the_page_needs_is_written(exported: Any, stand_in: Path, tmp_path: Path) -> None:
    artefact = open_for_page(exported("labels-bytes"))
    assert write_page(tmp_path / "page", artefact, runtime=stand_in) == 0, "nobody draws nuts and bolts"
    names = sorted(str(path.relative_to(tmp_path / "page")) for path in (tmp_path / "page").rglob("*.*"))
    assert names == sorted([*PAGE_FILES, *(f"runtime/{name}" for name in FILES), "demo.json", "model.onnx"])
    content = json.loads((tmp_path / "page" / "demo.json").read_text())
    assert content == json.loads(json.dumps(described(artefact))) | {"samples": []}
    assert content["input"] == {"size": [64, 96], "pixels": "uint8", "layout": "nchw", "resize": "stretch",
                                "fill": [200, 30, 90]}
    assert content["classes"]["names"] == list(discovery.OWN.names)
    assert described(open_for_page(exported("boxes-bytes")))["thresholds"] == (0.65, 0.3, USUAL_THRESHOLD)
    assert content["bytes"] == artefact.path.stat().st_size
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_what_is_named_in_the_page_is_there() -> None:
    """Ids and files, as there is no compiler that would ask."""
    html, script, worker = ((WEB / name).read_text() for name in ("index.html", "page.js", "worker.js"))
    assert sorted(path.name for path in WEB.iterdir()) == sorted(PAGE_FILES)
    ids = {part.split('"')[0] for part in html.split(' id="')[1:]}
    asked = {part.split('"')[0] for part in script.split('element("')[1:]}
    assert asked - ids == set()
    assert all(name in html + script + worker for name in PAGE_FILES[1:])
    assert f"./runtime/{FILES[0]}" in worker
    assert "http://" not in html + script + worker
    assert "https://" not in html + script + worker


def test_sample_pictures_lie_beside_the_page(exported: Any, stand_in: Path, tmp_path: Path) -> None:
    artefact = open_for_page(exported("labels-bytes"))
    for name in ("b.JPG", "a.tif", "c.png"):
        write_picture(tmp_path / "photos" / name, PICTURES[0])
    assert write_page(tmp_path / "page", artefact, runtime=stand_in, images=[str(tmp_path / "photos")]) == 3
    samples = json.loads((tmp_path / "page" / "demo.json").read_text())["samples"]
    assert [(one["name"], one["file"]) for one in samples] == [
        ("a.tif", "samples/00.png"), ("b.JPG", "samples/01.jpg"), ("c.png", "samples/02.png")]
    assert (tmp_path / "page" / "samples" / "02.png").read_bytes() == (tmp_path / "photos" / "c.png").read_bytes()
    assert np.array_equal(_read(tmp_path / "page" / "samples" / "00.png"), PICTURES[0]), "browsers read no TIFF"
    for one in samples:
        assert max(_read(tmp_path / "page" / one["thumbnail"]).shape) == 160
    for number in range(MOST_SAMPLES + 5):
        shutil.copyfile(tmp_path / "photos" / "c.png", tmp_path / "photos" / f"d{number}.png")
    assert write_page(tmp_path / "page", artefact, runtime=stand_in, images=[f"{tmp_path}/photos/*"]) == MOST_SAMPLES


def test_a_file_of_the_generated_sample_s_classes_has_its_pictures(
    exported: Any, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = open_for_page(exported("labels-bytes"))
    monkeypatch.setattr("detseg.demo.page.CATEGORIES", list(enumerate(discovery.OWN.names)))
    assert write_page(tmp_path / "page", artefact, runtime=stand_in) == 8
    assert len(list((tmp_path / "page" / "samples").iterdir())) == 16


def test_a_page_replaces_a_page_and_nothing_else(exported: Any, stand_in: Path, tmp_path: Path) -> None:
    artefact, page = open_for_page(exported("labels-bytes")), tmp_path / "page"
    page.mkdir()
    write_page(page, artefact, runtime=stand_in)
    (page / "old.txt").touch()
    write_page(page, artefact, runtime=stand_in)
    assert not (page / "old.txt").exists()
    for other in (tmp_path / "photos", tmp_path / "file"):
        if other.name == "photos":
            other.mkdir()
            (other / "mine.txt").touch()
        else:
            other.touch()
        with pytest.raises(ValueError, match=r"holds something else than an earlier page; name a new or an empty fold"):
            write_page(other, artefact, runtime=stand_in)
    (tmp_path / "photos" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the image .*x\.jpg"):
        write_page(page, artefact, runtime=stand_in, images=[str(tmp_path / "photos")])
    assert (page / "index.html").exists(), "the page from before"
    assert not [path.name for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_files_that_the_page_cannot_run_are_refused(exported: Any, tmp_path: Path) -> None:
    file = exported("labels-bytes")
    again = r"export its checkpoint runs/labels-bytes/best.pt again: detseg export RUN --format onnx"
    for contract in CONTRACTS[:2]:
        (tmp_path / "other.onnx").write_bytes(FORMAT.content(file))
        changed = replace(open_for_page(file).manifest, contract=contract)
        FORMAT.embed(tmp_path / "other.onnx", changed.to_json())
        with pytest.raises(ValueError, match=f'ends with "{contract}", and the page needs .* with "final"; {again}'):
            open_for_page(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=f"is for PyTorch.*, and the page runs ONNX files; {again}"):
        open_for_page(exported("labels-bytes", name="pt2"))
    with pytest.raises(ValueError, match=r"is a folder, .*if it is a run: detseg export .* --format onnx"):
        open_for_page(tmp_path)
    (tmp_path / "x.jpg").touch()
    with pytest.raises(ValueError, match=r"x\.jpg is no exported file; those end in"):
        open_for_page(tmp_path / "x.jpg")
    content = file.read_bytes()
    for damaged, message in ((content[:-9], "has no manifest: it was cut short, or detseg did not write it"),
                             (content[:900] + b"?" + content[901:], "is not what was written")):
        (tmp_path / "x.onnx").write_bytes(damaged)
        with pytest.raises(OSError, match=message):
            open_for_page(tmp_path / "x.onnx")


# ------------------------------------------------------------------------------------------ the runtime's files


def npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program called npm before all others, and the cache into `folder`."""
    program = folder / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_npm_fills_the_cache_once(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        archive.add(tmp_path / "package", "package")
    npm(tmp_path, f'echo "$@" >> {tmp_path}/asked; cp {tmp_path}/x.tgz "$4/"', monkeypatch)
    with pytest.raises(OSError, match=r"is not the package that was pinned: its checksum is sha512-.*--runtime DIR"):
        runtime_folder()
    digest = subprocess.run(["openssl", "dgst", "-sha512", "-binary", tmp_path / "x.tgz"], check=True,
                            capture_output=True).stdout
    monkeypatch.setattr(runtimes, "INTEGRITY", "sha512-" + subprocess.run(
        ["base64", "-w0"], input=digest, check=True, capture_output=True).stdout.decode())
    (tmp_path / "asked").unlink()
    for _ in range(2):
        folder = runtime_folder()
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        assert folder.parent == tmp_path / "cache" / "detseg"
    assert (tmp_path / "asked").read_text().startswith(f"pack onnxruntime-web@{runtimes.VERSION} ")
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_npm_both_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = r"Install Node.js, .* or unpack the npm package onnxruntime-web@[\d.]+ yourself .* --runtime DIR"
    npm(tmp_path, "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    with pytest.raises(OSError, match=rf"npm could not fetch onnxruntime-web@.* \(npm error code ENOTFOUND\)\. {ways}"):
        runtime_folder()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=rf"there is no npm here\. {ways}"):
        runtime_folder()


def test_an_unpacked_package_does_as_well(stand_in: Path, tmp_path: Path) -> None:
    for given in (stand_in, stand_in.parent, stand_in.parent.parent):
        assert runtime_folder(given) == stand_in
    with pytest.raises(ValueError, match=r"is no unpacked npm package onnxruntime-web: neither it nor its folder dist"):
        runtime_folder(WEB)


# ------------------------------------------------------------------------------------------ the server


@contextlib.contextmanager
def serving(server: http.server.HTTPServer) -> Iterator[http.server.HTTPServer]:
    with server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page's folder with a file of every kind."""
    page = tmp_path / "page"
    (page / "samples").mkdir(parents=True)
    for name in ("index.html", "style.css", "page.js", "demo.json", "a.mjs", "a.wasm", "model.onnx", "samples/0.png"):
        (page / name).write_bytes(b"content")
    (tmp_path / "secret.txt").touch()
    return page


@pytest.mark.parametrize(("path", "kind"), [
    ("", "text/html; charset=utf-8"), ("style.css", "text/css; charset=utf-8"), ("demo.json", "application/json"),
    ("page.js", "text/javascript; charset=utf-8"), ("a.mjs", "text/javascript; charset=utf-8"),
    ("a.wasm", "application/wasm"), ("model.onnx", "application/octet-stream"), ("samples/0.png", "image/png")])
def test_files_have_their_type_and_are_isolated(path: str, kind: str, folder: Path) -> None:
    with serving(open_server(folder, host="127.0.0.1", port=0)) as server:
        assert isinstance(server, PageServer)
        with urllib.request.urlopen(server.addresses[0] + path) as response:
            assert response.read() == b"content"
            headers = response.headers
    assert headers["Content-Type"] == kind
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Cache-Control"] == "no-cache"


def test_only_the_page_is_served(folder: Path) -> None:
    with serving(open_server(folder, host="127.0.0.1", port=0)) as server:
        for path in ("/samples/", "/none", "/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd"):
            connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]))
            connection.request("GET", path)
            assert connection.getresponse().status == 404, path
            connection.close()


def test_both_addresses_are_told(folder: Path) -> None:
    with open_server(folder, port=0) as server:
        port = int(server.server_address[1])
        assert server.addresses == [f"http://{host}:{port}/" for host in ("localhost", *network_addresses())]
    with open_server(folder, host="127.0.0.1", port=0) as server:
        assert server.addresses == [f"http://127.0.0.1:{server.server_address[1]}/"]


def test_ports_and_hosts_that_cannot_be_are_refused(folder: Path) -> None:
    with open_server(folder, host="127.0.0.1", port=0) as server:
        port = int(server.server_address[1])
        with pytest.raises(ValueError, match=rf"port {port} is in use by another program; .* --port 0 take a free one"):
            open_server(folder, host="127.0.0.1", port=port)
    with pytest.raises(ValueError, match="a port is a number from 0 to 65535, got 65536"):
        open_server(folder, port=65536)
    for host in ("no.such.host.invalid", "203.0.113.7"):
        with pytest.raises(ValueError, match=rf"{host} is no address of this machine; leave --host out"):
            open_server(folder, host=host, port=0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates need the program openssl")
def test_https_has_a_certificate_and_no_phone_holds_up_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with serving(open_server(folder, host="127.0.0.1", port=0, https=True)) as server:
        assert isinstance(server, PageServer)
        address = ("127.0.0.1", int(server.server_address[1]))
        with socket.create_connection(address), socket.create_connection(address) as plain:  # the first says nothing
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with urllib.request.urlopen(server.addresses[0], context=context, timeout=20) as response:
                assert response.read() == b"content"
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(server.addresses[0])
    assert server.addresses[0].startswith("https://127.0.0.1:")
    assert capsys.readouterr().err == "", "browsers that do not trust it are no news"


def test_without_openssl_https_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"--https makes a certificate with the program openssl, which is not install"):
        open_server(folder, port=0, https=True)
    (tmp_path / "openssl").write_text("#!/bin/sh\necho unknown option addext >&2\nexit 1\n")
    (tmp_path / "openssl").chmod(0o755)
    with pytest.raises(OSError, match=r"openssl made no certificate \(unknown option addext\); leave --https out"):
        open_server(folder, port=0, https=True)


# ------------------------------------------------------------------------------------------ the command


def test_the_command_serves_until_ctrl_c(
    exported: Any, stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def interrupted(server: PageServer) -> None:
        seen.append(sorted(path.name for path in server.folder.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", interrupted)
    code, out, err = run("demo", str(exported("labels-bytes")), "--port", "0", "--host", "127.0.0.1", "--runtime",
                         str(stand_in), capsys=capsys)
    assert (code, err) == (0, "")
    assert "index.html" in seen[0]
    assert "labels-bytes.onnx with 0 sample pictures; Ctrl-C ends it\n  http://127.0.0.1:" in out
    assert "--https" in out


def test_the_command_writes_the_page(
    exported: Any, stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(exported("labels-bytes")), str(tmp_path / "page")
    code, said, _ = run("demo", file, "--out", out, "--runtime", str(stand_in), capsys=capsys)
    assert code == 0
    assert said == f"{out}: {file} as a page with 0 sample pictures, for a web server\n"
    assert (tmp_path / "page" / "runtime" / FILES[0]).read_text() == FILES[0]
    for option in (["--https"], ["--port", "8"], ["--host", "127.0.0.1"]):
        code, _, err = run("demo", file, "--out", out, *option, capsys=capsys)
        assert code == 2
        assert "--out only writes the page; leave --https, --port and --host" in err
    code, _, err = run("demo", str(stand_in), capsys=capsys)
    assert code == 2
    assert "is a folder, and the page runs an exported file" in err


# ------------------------------------------------------------------------------------------ JavaScript's resize

NODE = """
import fs from "node:fs";
import { boxToOriginal, countLabels, labelsToOriginal, place, resized } from "%s";
const folder = process.argv[2];
const answers = JSON.parse(fs.readFileSync(`${folder}/cases.json`)).map(({ size, given, boxes, classes }, k) => {
  const rgb = fs.readFileSync(`${folder}/${k}.picture`);
  const row = (y) => {
    const line = new Uint8ClampedArray(4 * size[1]);
    for (let x = 0; x < size[1]; x++) line.set(rgb.subarray(3 * (y * size[1] + x), 3 * (y * size[1] + x) + 3), 4 * x);
    return line;
  };
  fs.writeFileSync(`${folder}/${k}.input`, resized({ height: size[0], width: size[1], row }, given));
  const placement = place(size, given);
  const labels = fs.readFileSync(`${folder}/${k}.labels`);
  fs.writeFileSync(`${folder}/${k}.original`, labelsToOriginal(labels, given.size[1], placement, size));
  return { boxes: boxes.map((box) => boxToOriginal(box, placement, size)),
           counts: countLabels(labels, given.size[1], placement, size, classes) };
});
fs.writeFileSync(`${folder}/answers.json`, JSON.stringify(answers));
"""
RULES: Mapping[str, type[Stretch | Letterbox | TensorFlowStretch]] = {
    "stretch": Stretch, "letterbox": Letterbox, "tensorflow_stretch": TensorFlowStretch}
SIZES = [(48, 64), (37, 53), (480, 640), (301, 200), (1, 1), (7, 300), (64, 96), (128, 192), (427, 640), (1200, 1600),
         (65, 3), (85, 128)]


def test_javascript_resizes_and_maps_back_as_python_does(tmp_path: Path) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("JavaScript's resize is tested in node, which is not installed")
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    rules: list[Resize] = []
    wanted = []
    for k, original in enumerate(SIZES):
        for name, resize in RULES.items():
            for pixels, layout in (("uint8", "nhwc"), ("float", "nchw")):
                size = (64, 96) if k % 2 else (90, 61)
                rule: Resize = resize(size, fill=(200, 30, 90))
                picture = rng.integers(0, 256, (*original, 3), dtype=np.uint8)
                labels = rng.integers(0, 5, size, dtype=np.uint8)
                boxes = rng.uniform(-10, 110, (4, 4)).astype(np.float32)
                picture.tofile(tmp_path / f"{len(cases)}.picture")
                labels.tofile(tmp_path / f"{len(cases)}.labels")
                cases.append({"size": original, "boxes": boxes.tolist(), "classes": 5, "given": {
                    "size": size, "pixels": pixels, "layout": layout, "resize": name,
                    "fill": rule.fill}})
                rules.append(rule)
                wanted.append((picture, labels, boxes))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "run.mjs").write_text(NODE % (WEB / "resize.js").as_uri())
    done = subprocess.run([node, tmp_path / "run.mjs", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    for k, (case, rule, (picture, labels, boxes), answer) in enumerate(zip(cases, rules, wanted, answers, strict=True)):
        original = (picture.shape[0], picture.shape[1])
        placement = rule.place(original)
        _assert_same_input(tmp_path / f"{k}.input", case["given"], rule, picture)
        restored = placement.labels_to_original(labels, original)
        assert (tmp_path / f"{k}.original").read_bytes() == restored.tobytes()
        assert answer["counts"] == np.bincount(restored.ravel(), minlength=5).tolist()
        back = placement.boxes_to_original(torch.from_numpy(boxes), original).numpy()
        np.testing.assert_allclose(answer["boxes"], back, rtol=1e-5, atol=1e-3)


def _assert_same_input(path: Path, given: Mapping[str, Any], rule: Resize, picture: Pixels) -> None:
    if given["pixels"] == "uint8":
        mine = np.fromfile(path, np.uint8).astype(np.float32).reshape(*rule.size, 3)
        drift = np.abs(mine - Rounded(rule).apply(picture))
        # OpenCV's builds differ in the last digit from each other; where a half is rounded it decides.
        assert drift.max() <= 1
        assert np.count_nonzero(drift) <= 0.01 * drift.size
    else:
        mine = np.fromfile(path, np.float32).reshape(3, *rule.size).transpose(1, 2, 0)
        assert np.abs(mine - rule.apply(picture)).max() < 2e-3


# ------------------------------------------------------------------------------------------ the page in a browser


class Browser:
    """A page of one of the files in Chromium, and what it says."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.requested: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))

    def open(self) -> Browser:
        """Waits for the network."""
        self.page.goto(self.url)
        self.until("detseg.ready")
        return self

    def until(self, condition: str, *, seconds: float = 60) -> Any:
        """Playwright's own waiting evaluates texts, which the page's policy forbids."""
        end = time.monotonic() + seconds
        while not (value := self.page.evaluate(f"() => window.detseg && ({condition})")):
            assert time.monotonic() < end, f"{condition}: {self.text('status')} {self.text('error')}"
            time.sleep(0.02)
        return value

    def text(self, name: str) -> str:
        return str(self.page.locator(f"#{name}").text_content())

    def upload(self, path: Path) -> Any:
        """The answer to a picture."""
        self.page.set_input_files("#upload", path)
        self.until(f"detseg.answer && document.getElementById('still').alt === {json.dumps(path.name)}")
        answer = self.page.evaluate("() => ({ ...detseg.answer, labels: null })")
        if "counts" in answer:  # a million numbers one by one would take Playwright a minute
            coded = self.page.evaluate("""() => new Promise((done) => {
              const reader = new FileReader();
              reader.onload = () => done(reader.result);
              reader.readAsDataURL(new Blob([detseg.labels()]));
            })""")
            answer["labels"] = np.frombuffer(base64.b64decode(coded.partition(",")[2]), np.uint8)
        return answer

    def says(self, sentence: str) -> None:
        self.until(f"document.getElementById('error').textContent.includes({json.dumps(sentence)})")
        assert self.page.locator("#error").is_visible()

    def listed(self) -> dict[str, str]:
        """The classes in the list, with what stands behind each."""
        words = self.page.locator("#classes li:visible button").all_text_contents()
        return {name: value for name, _, value in (one.partition(" ") for one in words)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, with a camera that shows a pattern."""
    # Threads are workers inside a worker; Playwright's own way to accept a certificate does not reach all of them.
    with browser.launched("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                          "--ignore-certificate-errors") as launched:
        yield launched


@pytest.fixture(scope="module")
def onnxruntime_web() -> Path:
    """The real runtime's files."""
    try:
        return runtime_folder()
    except (OSError, ValueError) as problem:
        pytest.skip(f"browser tests need ONNX Runtime for browsers: {problem}")


@pytest.fixture(scope="module")
def written_page(exported: Any, onnxruntime_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the folder of a file's page, with two sample pictures."""
    folder = tmp_path_factory.mktemp("pages")
    for number in (0, 1):
        write_picture(folder / "photos" / f"{number}.png", PICTURES[number])

    @cache
    def write(kind: str) -> Path:
        write_page(folder / kind, open_for_page(exported(kind)), runtime=onnxruntime_web,
                   images=[str(folder / "photos")])
        return folder / kind

    return write


@contextlib.contextmanager
def visits(chromium: Any, written_page: Any) -> Iterator[Any]:
    """Gives what goes to the page of a file; nothing may come from another host, and no error may stay unsaid."""
    with contextlib.ExitStack() as stack:
        def go(kind: str, *, host: str = "127.0.0.1", https: bool = False) -> Browser:
            server = stack.enter_context(serving(open_server(written_page(kind), host=host, port=0, https=https)))
            assert isinstance(server, PageServer)
            page = stack.enter_context(contextlib.closing(chromium.new_page()))
            page.on("pageerror", lambda error: problems.append(str(error)))
            browser = Browser(page, server.addresses[0])
            opened.append(browser)
            return browser

        problems: list[str] = []
        opened: list[Browser] = []
        yield go
        for browser in opened:
            assert {url for url in browser.requested if not url.startswith((browser.url, "blob:", "data:"))} == set()
        assert problems == []


@pytest.fixture
def visit(chromium: Any, written_page: Any) -> Iterator[Any]:
    """Goes to a page anew, and does not open it."""
    with visits(chromium, written_page) as go:
        yield go


@pytest.fixture(scope="module")
def page_of(chromium: Any, written_page: Any) -> Iterator[Any]:
    """Gives the open page of a file, the same in all tests: starting the runtime takes seconds."""
    with visits(chromium, written_page) as go:
        yield cache(lambda kind: go(kind).open())


def pictures(folder: Path) -> list[Path]:
    """The same scene in files of many kinds, in sizes around and far from the network's."""
    scene = PICTURES[2]
    folder.mkdir()
    large = cv2.resize(scene, (1501, 1130), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(scene).save(folder / "plain.png")
    Image.fromarray(large).save(folder / "large.jpg", quality=92)
    Image.fromarray(scene[:50, :33]).save(folder / "small.bmp")
    Image.fromarray(cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY)).save(folder / "grey.jpg")
    Image.fromarray(scene).save(folder / "lossless.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    Image.fromarray(scene).save(folder / "turned.jpg", exif=exif)
    alpha = np.linspace(0, 255, scene.shape[0] * scene.shape[1]).reshape(scene.shape[:2]).astype(np.uint8)
    Image.fromarray(np.dstack([scene, alpha])).save(folder / "transparent.png")
    # Whoever converts its colours sees green for red.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"gxyz", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"gxyz", b"gXYZ", 1)
    assert swapped != profile
    Image.fromarray(scene).save(folder / "profile.png", icc_profile=swapped)
    return sorted(folder.iterdir())


def _assert_same_answer(answer: Any, wanted: Boxes | LabelMap) -> None:
    """The page's answer and Python's, both in the picture's pixels."""
    if isinstance(wanted, LabelMap):
        assert answer["size"] == list(wanted.labels.shape)
        mine = answer["labels"].reshape(wanted.labels.shape)
        assert np.count_nonzero(mine != wanted.labels) <= 0.002 * mine.size
        assert answer["counts"] == np.bincount(mine.ravel(), minlength=len(wanted.names)).tolist()
        return
    assert len(answer["boxes"]) == len(wanted.scores)
    for mine, box, score, label in zip(answer["boxes"], wanted.boxes, wanted.scores, wanted.labels, strict=True):
        assert mine["label"] == int(label)
        assert mine["score"] == pytest.approx(float(score), abs=0.005)
        assert mine["box"] == pytest.approx(box.tolist(), abs=0.5)


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.slow if kind.endswith("floats") else ()) for kind in KINDS])
def test_the_page_says_what_python_says(kind: str, page_of: Any, exported: Any, tmp_path: Path) -> None:
    model, page = detseg.load(exported(kind)), page_of(kind)
    for path in pictures(tmp_path / "pictures"):
        wanted = model(path)
        assert isinstance(wanted, LabelMap) or len(wanted.scores) > 0
        _assert_same_answer(page.upload(path), wanted)
    assert page.page.evaluate("() => detseg.threads") >= 1
    assert "ms, whole " in page.text("times")


@pytest.mark.real
@pytest.mark.parametrize("kind", ["boxes-bytes", "labels-bytes"])
def test_photographs_give_what_python_says(kind: str, page_of: Any, exported: Any, shared: Path) -> None:
    model, page = detseg.load(exported(kind)), page_of(kind)
    photos = sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:10]
    assert len(photos) == 10
    for path in photos:
        _assert_same_answer(page.upload(path), model(path))


def test_boxes_are_chosen_by_score_and_class(page_of: Any, exported: Any, tmp_path: Path) -> None:
    page = page_of("boxes-bytes")
    path = pictures(tmp_path / "pictures")[0]
    page.upload(path)
    found = detseg.load(exported("boxes-bytes"))(path)
    counted = []
    for threshold in (0.05, float(found.scores.median()) + 1e-3, 1.0):
        page.page.locator("#threshold").fill(f"{threshold:.2f}")
        names = [name for name, score in zip(found.names, found.scores.tolist(), strict=True)
                 if score >= float(f"{threshold:.2f}")]
        assert page.listed() == {name: str(names.count(name)) for name in set(names)}
        assert page.text("threshold-value") == f"{threshold:.2f}"
        counted.append(len(names))
    assert counted[0] > counted[1] > counted[2] == 0
    assert page.text("status") == "Nothing as sure as that"

    page.page.locator("#threshold").fill("0.05")
    assert _painted(page) > 0
    for button in page.page.locator("#classes li:visible button").all():
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
    assert _painted(page) == 0
    assert len(page.listed()) == len(set(found.names)), "a hidden class stays in the list, to come back"
    for button in page.page.locator("#classes li:visible button").all():
        button.click()
    assert _painted(page) > 0


RECORD = """() => {
  const { getContext } = HTMLCanvasElement.prototype;
  const { strokeRect, fillText } = CanvasRenderingContext2D.prototype;
  HTMLCanvasElement.prototype.getContext = function (...kind) {
    window.drawn = { size: [this.height, this.width], strokes: [], words: [] }; // the page asks for it at every drawing
    return getContext.apply(this, kind);
  };
  CanvasRenderingContext2D.prototype.strokeRect = function (...corners) {
    window.drawn.strokes.push(corners);
    strokeRect.apply(this, corners);
  };
  CanvasRenderingContext2D.prototype.fillText = function (...words) {
    window.drawn.words.push(words[0]);
    fillText.apply(this, words);
  };
}"""
Row: TypeAlias = tuple[float, float, float, float, float, str]
"""A box in the picture's pixels, its score and its class."""


def _drawn(page: Browser) -> list[Row]:
    """The boxes of the last drawing, best first; each has a rim and a line, and its score two decimals."""
    drawn, (height, width) = page.page.evaluate("() => drawn"), page.page.evaluate("() => detseg.answer.size")
    down, across = height / drawn["size"][0], width / drawn["size"][1]
    assert drawn["strokes"][::2] == drawn["strokes"][1::2]
    rows = []
    for (x, y, wide, high), words in zip(drawn["strokes"][::2], drawn["words"], strict=True):
        name, score = words.split(" ")
        rows.append((x * across, y * down, (x + wide) * across, (y + high) * down, float(score), name))
    return rows[::-1]


def _predicted(folder: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[Row]:
    """The boxes that detseg predict shows."""
    file = folder / "shown.csv"
    assert run("predict", *arguments, "--csv", str(file), "--out", str(folder / "out"), capsys=capsys)[0] == 0
    with file.open(newline="") as opened:
        return [(float(row["left"]), float(row["top"]), float(row["right"]), float(row["bottom"]), float(row["score"]),
                 row["class"]) for row in csv.DictReader(opened)]


def _assert_same_boxes(mine: list[Row], wanted: list[Row]) -> None:
    assert [row[-1] for row in mine] == [row[-1] for row in wanted]
    for one, other in zip(mine, wanted, strict=True):
        assert one[:4] == pytest.approx(other[:4], abs=0.5)
        assert one[4] == pytest.approx(other[4], abs=0.01)


def _assert_compared_as_in_python(page: Browser, threshold: Threshold, redraw: Callable[[], object]) -> None:
    """With an answer of scores at and around the thresholds: of each in single precision, and the next two numbers."""
    values = threshold if isinstance(threshold, Sequence) else [threshold]
    around = {float(np.nextafter(np.float32(value), np.float32(to))) for value in values for to in (0, value, 1)}
    rows = [(score, label) for score in sorted(around, reverse=True) for label in range(len(discovery.OWN))]
    page.page.evaluate("(rows) => { detseg.answer.boxes = rows.map(([score, label], k) => "
                       "({ score, label, box: [k, 0, k + 1, 1] })); }", rows)
    redraw()
    shown = ImageDetections(0, torch.zeros(len(rows), 4), torch.tensor([score for score, _ in rows]),
                            torch.tensor([label for _, label in rows])).shown(threshold)
    assert 0 < shown.sum() < len(rows)
    assert [round(row[0]) for row in _drawn(page)] == shown.nonzero()[:, 0].tolist()


def test_the_page_draws_the_boxes_that_predict_shows(
    visit: Any, exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, file, path = visit("boxes-bytes").open(), str(exported("boxes-bytes")), pictures(tmp_path / "pictures")[0]
    page.page.evaluate(RECORD)
    slider, by_class = page.page.locator("#threshold"), page.page.locator("#by-class")

    def said() -> tuple[str | None, str]:
        return by_class.get_attribute("aria-pressed"), page.text("threshold-value")

    found = page.upload(path)["boxes"]
    usual = _predicted(tmp_path, file, str(path), capsys=capsys)
    _assert_same_boxes(_drawn(page), usual)
    assert sorted(one["score"] for one in found)[-len(usual)] > min(row[4] for row in usual), "no one threshold does it"
    assert said() == ("true", "")
    slider.fill("0.58")
    _assert_same_boxes(_drawn(page), _predicted(tmp_path, file, str(path), "--threshold", "0.58", capsys=capsys))
    assert said() == ("false", "0.58")
    by_class.click()
    _assert_same_boxes(_drawn(page), usual)
    assert said() == ("true", "")
    by_class.click()
    assert said() == ("false", "0.58")

    _assert_compared_as_in_python(page, (0.65, 0.3, USUAL_THRESHOLD), by_class.click)
    _assert_compared_as_in_python(page, 0.7, lambda: slider.fill("0.7"))
    _assert_compared_as_in_python(page, 0.5, lambda: slider.fill("0.5"))  # the same number in both precisions


def test_classes_of_one_threshold_have_it_on_the_slider(visit: Any, written_page: Any, tmp_path: Path) -> None:
    page = visit("boxes-bytes")
    content = json.loads((written_page("boxes-bytes") / "demo.json").read_text()) | {"thresholds": [0.437] * 3}
    page.page.route("**/demo.json", lambda route: route.fulfill(json=content))
    page.open().page.evaluate(RECORD)
    page.upload(pictures(tmp_path / "pictures")[0])
    assert not page.page.locator("#by-class").is_visible()
    assert (page.text("threshold-value"), page.page.locator("#threshold").input_value()) == ("0.44", "0.44")
    button = page.page.locator("#classes li:visible button").first
    _assert_compared_as_in_python(page, 0.437, lambda: (button.click(), button.click()))
    page.page.locator("#threshold").fill("0.70")
    assert page.text("threshold-value") == "0.70"
    assert not page.page.locator("#by-class").is_visible()


def _painted(page: Browser) -> int:
    """Pixels of the overlay that are not empty."""
    return int(page.page.evaluate(
        "() => { const c = document.getElementById('overlay'); let n = 0; const d = "
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data; for (let k = 3; k < d.length; k += 4) "
        "n += d[k] > 0; return n; }"))


def test_label_maps_lie_on_the_picture(page_of: Any, exported: Any) -> None:
    page = page_of("labels-bytes")
    page.page.locator("#samples button").nth(1).click()
    page.until("detseg.answer && document.getElementById('still').alt === '1.png'")
    assert page.page.locator("#samples button[aria-current=true] img").get_attribute("alt") == "1.png"
    labels = detseg.load(exported("labels-bytes"))(PICTURES[1]).labels
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    for name, share in page.listed().items():
        assert float(share.removesuffix(" %").removeprefix("< ")) == pytest.approx(
            100 * shares[discovery.OWN.names.index(name)], abs=0.3)
    whole = _painted(page)
    assert whole > 0
    button = page.page.locator("#classes li:visible button").first
    button.click()
    assert _painted(page) < whole
    button.click()
    assert _painted(page) == whole
    page.page.locator("#opacity").fill("0.2")
    assert page.page.evaluate("() => document.getElementById('overlay').style.opacity") == "0.2"
    assert page.text("opacity-value") == "20 %"


def test_pictures_are_dropped_and_pasted(page_of: Any, exported: Any) -> None:
    page = page_of("labels-bytes")
    send = """(kind) => new Promise((done) => {
      const canvas = Object.assign(document.createElement("canvas"), { width: kind === "drop" ? 30 : 40, height: 20 });
      canvas.getContext("2d").fillRect(0, 0, 9, 9);
      canvas.toBlob((blob) => {
        const data = new DataTransfer();
        data.items.add(new File([blob], kind, { type: blob.type }));
        document.dispatchEvent(kind === "drop" ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
          : new ClipboardEvent("paste", { clipboardData: data }));
        done();
      });
    })"""
    for kind, width in (("drop", 30), ("paste", 40)):
        page.page.evaluate(send, kind)
        page.until(f"detseg.answer && detseg.answer.size[1] === {width}")
    page.page.evaluate('() => document.dispatchEvent(new ClipboardEvent("paste", '
                       '{ clipboardData: new DataTransfer() }))')
    page.says("The clipboard holds no picture.")


def test_what_is_no_picture_gets_a_sentence_and_the_next_picture_an_answer(page_of: Any, tmp_path: Path) -> None:
    page = page_of("labels-bytes")
    files = {"notes.txt": b"no picture", "cut.jpg": b"\xff\xd8\xff\xe0 nothing more", "empty.png": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        page.page.set_input_files("#upload", tmp_path / name)
        page.says(f"{name} is no picture that this browser can read")
        assert not page.page.locator("#found").is_visible()
    page.upload(pictures(tmp_path / "pictures")[0])
    assert not page.page.locator("#error").is_visible()


@pytest.mark.parametrize(("missing", "sentence"), [
    ("**/demo.json", "demo.json, which describes the network, could not be read: status 404"),
    ("**/model.onnx", "model.onnx is not there (404); was the page copied as a whole?"),
    ("**/ort.wasm.min.mjs", "The runtime could not be started"),
    ("**/*.wasm", "The network could not be loaded"),
])
def test_a_page_that_lacks_a_file_says_so(missing: str, sentence: str, visit: Any) -> None:
    page = visit("labels-bytes")
    page.page.route(missing, lambda route: route.fulfill(status=404))
    page.page.goto(page.url)
    page.says(sentence)


def test_a_network_that_fails_is_begun_anew(visit: Any, written_page: Any, tmp_path: Path) -> None:
    page = visit("labels-bytes")
    broken = json.loads((written_page("labels-bytes") / "demo.json").read_text())
    broken["input"]["size"] = [8, 8]
    page.page.route("**/demo.json", lambda route: route.fulfill(json=broken))
    page.page.goto(page.url)
    page.says("The network could not be loaded")
    page.page.unroute("**/demo.json")
    page.page.route("**/model.onnx", lambda route: route.fulfill(status=404), times=1)
    page.page.goto(page.url)
    page.says("model.onnx is not there (404)")
    page.upload(pictures(tmp_path / "pictures")[0])
    assert not page.page.locator("#error").is_visible()


def test_the_live_camera_runs_and_stops(page_of: Any) -> None:
    page = page_of("labels-bytes")
    page.page.locator("#camera").click()
    page.until("/median of ([3-9]|\\d\\d)/.test(document.getElementById('times').textContent)")
    assert page.page.locator("#video").is_visible()
    assert page.page.locator("#camera").get_attribute("aria-pressed") == "true"
    assert not page.page.locator("#error").is_visible()
    size = page.page.evaluate("() => [video.videoHeight, video.videoWidth]")
    assert page.page.evaluate("() => detseg.answer.size") == size
    page.page.locator("#camera").click()
    assert not page.page.locator("#picture").is_visible()
    page.page.locator("#samples button").first.click()
    page.until("detseg.answer && document.getElementById('still').alt === '0.png'")
    page.page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => "
                       "Promise.reject(new DOMException('no', 'NotAllowedError')); }")
    page.page.locator("#camera").click()
    page.says("The browser was not allowed to use the camera")
    page.page.evaluate("() => { delete navigator.mediaDevices.getUserMedia; }")


def test_threads_need_a_secure_page_and_photos_do_not(visit: Any, tmp_path: Path) -> None:
    address = next(iter(network_addresses()), None)
    if address is None:
        pytest.skip("this machine has no address in a network")
    path = pictures(tmp_path / "pictures")[0]
    plain = visit("labels-bytes", host=address).open()
    assert plain.page.locator("#insecure").is_visible()
    assert plain.page.locator("#camera").is_disabled()
    assert plain.page.locator("#photo").get_attribute("capture") == "environment"
    answer = plain.upload(path)
    assert plain.page.evaluate("() => detseg.threads") == 1
    if shutil.which("openssl") is None:
        return
    secure = visit("labels-bytes", host=address, https=True).open()
    assert not secure.page.locator("#insecure").is_visible()
    assert secure.page.locator("#camera").is_enabled()
    assert secure.page.evaluate("() => crossOriginIsolated")
    assert secure.upload(path)["counts"] == answer["counts"]


def test_any_web_server_can_host_the_page(written_page: Any, chromium: Any, tmp_path: Path) -> None:
    handler = partial(Python, directory=str(written_page("labels-bytes")))
    with (serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server,
          contextlib.closing(chromium.new_page()) as page):
        browser = Browser(page, f"http://127.0.0.1:{server.server_address[1]}/").open()
        browser.upload(pictures(tmp_path / "pictures")[0])
        assert page.evaluate("() => detseg.threads") == 1


class Python(http.server.SimpleHTTPRequestHandler):
    """`python -m http.server`, silent."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)
