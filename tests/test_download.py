"""Downloads, from a server of our own: checked, whole or not there at all."""

import hashlib
import socket

import keras
import pytest

from mat.cli.download import download
from mat.cli.errors import UserError
from mat.data import convert as converter
from mat.data.convert import main
from tests.test_archives import FILES, archive


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_fetched_once(server, tmp_path, capsys):
    address, state = server
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.zip.part").write_bytes(b"left by a process that was killed")
    for _ in range(2):
        download(address, tmp_path / "new" / "file.zip", sha256=hashlib.sha256(state["content"]).hexdigest().upper())
    assert (tmp_path / "new" / "file.zip").read_bytes() == state["content"]
    assert state["n_requests"] == 1
    assert names(tmp_path / "new") == ["file.zip"]
    assert socket.getdefaulttimeout() is None
    assert capsys.readouterr().out == f"{tmp_path}/new/file.zip: is there already; remove it to fetch it again\n"  # and no progress bar


@pytest.mark.parametrize(
    ("url", "state", "words"),
    [
        (None, {"status": 404}, r"HTTP Error 404: Not Found\). Run the same command again, or fetch the file by hand and save it as"),
        (None, {"breaks_after": 600_000}, r"got only 600000 out of 1024000 bytes"),
        ("http://127.0.0.1:1/file.zip", {}, "Connection refused"),
        ("nowhere", {}, "unknown url type"),
    ],
)
def test_what_cannot_be_fetched_is_told_and_leaves_nothing(server, tmp_path, url, state, words):
    server[1].update(state)
    with pytest.raises(UserError, match=f"{url or server[0]}: cannot be fetched .*{words}"):
        download(url or server[0], tmp_path / "file.zip")
    assert names(tmp_path) == []


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def get_file(name, *_, cache_dir, **__):
        (cache_dir / name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with pytest.raises(KeyboardInterrupt):
        download("http://127.0.0.1:1/file.zip", tmp_path / "file.zip")
    assert names(tmp_path) == []


def test_a_wrong_file_is_removed_if_it_is_new_and_else_kept(server, tmp_path):
    address, state = server
    words = f"not the expected file: its SHA-256 is [0-9a-f]{{64}}, and should be {'f' * 64}"
    with pytest.raises(UserError, match=f"{address}: {words}. What was fetched is removed"):
        download(address, tmp_path / "file.zip", sha256="F" * 64)
    assert names(tmp_path) == []
    (tmp_path / "file.zip").write_bytes(state["content"])
    with pytest.raises(UserError, match=f"{tmp_path}/file.zip: {words}. Remove it or move it away, and run"):
        download(address, tmp_path / "file.zip", sha256="F" * 64)
    assert (tmp_path / "file.zip").read_bytes() == state["content"]
    assert state["n_requests"] == 1


# The converter's --download.


def test_the_official_archive_is_checked_and_others_where_asked(server, tmp_path, capsys, monkeypatch):
    assert converter.URL == "https://cs231n.stanford.edu/tiny-imagenet-200.zip"  # a safe address
    address, state = server
    state["content"] = archive(tmp_path / "a.zip", FILES).read_bytes()
    out = tmp_path / "out"

    def refusal(*arguments):
        assert main(["--download", str(out), *arguments]) == 2
        return capsys.readouterr().err

    monkeypatch.setattr(converter, "URL", address)
    assert "should be 6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821" in refusal()
    mirror = ["--url", f"{address}?mirror", "--sha256"]
    assert f"should be {'0' * 64}" in refusal(*mirror, "0" * 64)
    assert names(out) == []
    assert main(["--download", str(out), *mirror, hashlib.sha256(state["content"]).hexdigest()]) == 0
    assert "1 train, 1 validation, 1 test images" in capsys.readouterr().out
    (out / "train.tfrecord").unlink()
    assert f"{out}/tiny-imagenet-200.zip: not the expected file" in refusal()


def test_destinations_that_cannot_be_made_are_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--download", str(tmp_path / "file" / "out")]) == 2
    assert "the directory cannot be made" in capsys.readouterr().err
