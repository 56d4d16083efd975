"""Downloads, from a server on loopback."""

import functools
import hashlib
import http.server
import os
import re
import sys
import threading
import time

import pytest

from lrdyn import data
from lrdyn.data import cifar, download
from tests.datasets import COLOUR, lrdyn, same, write_cifar

pytestmark = pytest.mark.usefixtures("small_sets")


class Quiet(http.server.SimpleHTTPRequestHandler):
    timeout = 10

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        if "cut" in self.path:  # fewer bytes than announced
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
        elif "endless" in self.path:
            self.send_response(200)
            self.end_headers()
            for _ in range(32):
                self.wfile.write(bytes(2**16))
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A file on a server; its address, and where downloads go."""
    pytest.importorskip("pooch")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    served = tmp_path / "served"
    served.mkdir()
    path = write_cifar(served)
    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        one.daemon_threads = True
        thread = threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{one.server_port}/{path.name}"
        checksum = "md5:" + hashlib.md5(path.read_bytes()).hexdigest()
        remote = download.Remote(address, path.name, checksum, path.stat().st_size)
        monkeypatch.setitem(download.REMOTE, "cifar10", remote)
        monkeypatch.setattr(download, "TIMEOUT", 5.0)
        yield address
        one.shutdown()
        thread.join(10)


def test_a_download_is_found_and_read(server, tmp_path, capsys):
    target = tmp_path / "new/place"
    status, out, err = lrdyn(capsys, "data", "download", "cifar10", "--data-dir", target)
    assert (status, out, err) == (0, f"{target}/{cifar.ARCHIVE}\n", "")
    assert same(data.images("cifar10", target), COLOUR)
    assert [path.name for path in target.iterdir()] == [cifar.ARCHIVE]
    before = (target / cifar.ARCHIVE).stat().st_mtime_ns
    assert lrdyn(capsys, "data", "download", "cifar10", "--data-dir", target)[0] == 0
    assert (target / cifar.ARCHIVE).stat().st_mtime_ns == before


def test_a_download_goes_to_the_first_place(server, tmp_path, monkeypatch):
    monkeypatch.delenv("LRDYN_DATA")
    nowhere = download.REMOTE["cifar10"]._replace(address="http://127.0.0.1:9/none")
    monkeypatch.setitem(download.REMOTE, "cifar10", nowhere)
    found = download.download("cifar10", address=server)
    assert found == tmp_path / "cache/lrdyn/data" / cifar.ARCHIVE


def test_what_a_killed_download_left_is_removed(server, tmp_path):
    target = tmp_path / "target"
    (target / download.PARTS).mkdir(parents=True)
    old, new = (target / download.PARTS / name for name in ("tmpabcd_123", "tmpefgh_456"))
    for path, age in ((old, 11), (new, 9)):
        path.write_bytes(b"half")
        then = time.time() - age * download.TIMEOUT
        os.utime(path, (then, then))
    download.download("cifar10", folder=target)
    assert not old.exists()
    assert new.exists()  # of another process, perhaps


def test_a_download_shows_its_progress_on_a_terminal(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download.download("cifar10", folder=tmp_path)
    assert cifar.ARCHIVE in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checksum": "md5:" + "0" * 32}, "got another checksum, wanted the file with md5:000000"),
        ({"address": "none"}, "got answer 404, wanted the file"),
        ({"address": "cut"}, "got (ChunkedEncodingError|ConnectionError), wanted the file"),
        ({"address": "endless"}, r"got more bytes than the \d+ wanted"),
        ({"address": "http://127.0.0.1:9/a"}, "got ConnectionError, wanted the file"),
    ],
    ids=["checksum", "absent", "cut", "endless", "connection"],
)
def test_a_failed_download_leaves_nothing(change, said, server, tmp_path, monkeypatch, capsys):
    remote = download.REMOTE["cifar10"]._replace(**change)
    if not remote.address.startswith("http"):
        remote = remote._replace(address=server.replace(cifar.ARCHIVE, remote.address))
    monkeypatch.setitem(download.REMOTE, "cifar10", remote)
    target = tmp_path / "target"
    status, out, err = lrdyn(capsys, "data", "download", "cifar10", "--data-dir", target)
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert re.match(f"lrdyn: error: {re.escape(cifar.ARCHIVE)}: {said}", err), err
    assert list(target.iterdir()) == []


def test_a_failed_download_keeps_what_was_there(server, tmp_path, monkeypatch):
    changed = download.REMOTE["cifar10"]._replace(checksum="md5:" + "0" * 32)
    monkeypatch.setitem(download.REMOTE, "cifar10", changed)
    (tmp_path / cifar.ARCHIVE).write_bytes(b"mine")
    with pytest.raises(download.DownloadFailed, match="another checksum"):
        download.download("cifar10", folder=tmp_path)
    assert (tmp_path / cifar.ARCHIVE).read_bytes() == b"mine"


def test_where_a_download_cannot_be_written(server, tmp_path, capsys):
    (tmp_path / "file").touch()
    status, _, err = lrdyn(capsys, "data", "download", "cifar10", "--data-dir", tmp_path / "file")
    assert (status, err.count("\n")) == (3, 1)
    assert err.endswith(": got Not a directory, wanted a folder with room\n")


def test_a_download_without_pooch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pooch", None)
    status, out, err = lrdyn(capsys, "data", "download", "cifar10")
    assert (status, out) == (2, "")
    assert err == "lrdyn: error: a download needs the package pooch: pip install 'lrdyn[data]'\n"


def test_the_address_and_checksum_are_those_of_the_page():
    one = download.Remote(*download.REMOTE["cifar10"])
    assert one.checksum == "md5:c32a1d4ab5d03f1284b67883e8d87530"
    assert one.address == f"https://www.cs.toronto.edu/~kriz/{one.file}"
