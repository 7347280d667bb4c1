"""Downloads, from a server of our own: broken ones go on, changed and wrong files are found."""

import hashlib
import zlib

import pytest

from mat.cli.download import download
from mat.cli.errors import UserError
from mat.data import convert as converter
from mat.data.convert import main
from tests.test_archives import FILES, archive

SIZE = 1_024_000  # of what the server has


def partial(directory, server, content, validator=None):
    """What a broken download leaves."""
    address, state = server
    (directory / "file.zip.part").write_bytes(content)
    (directory / "file.zip.part.source").write_text(f"{address}\n" + (validator or f'"{zlib.crc32(state["content"])}"'))


def left(directory):
    return sorted(path.name for path in directory.iterdir())


def test_download_fetches_the_file_once(server, tmp_path):
    address, state = server
    download(address, tmp_path / "new" / "file.zip")
    download(address, tmp_path / "new" / "file.zip")
    assert (tmp_path / "new" / "file.zip").read_bytes() == state["content"]
    assert state["requests"] == [None]
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["file.zip"]


def test_broken_transfer_goes_on_where_it_broke_off(server, tmp_path):
    address, state = server
    state["breaks_after"] = 600_000
    with pytest.raises(UserError, match=r"broke off \(600000 of 1024000 bytes came\).*goes on from"):
        download(address, tmp_path / "file.zip")
    assert not (tmp_path / "file.zip").exists()
    download(address, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == state["content"]
    assert state["requests"] == [None, "bytes=600000-"]


def test_servers_without_ranges_send_everything_again(server, tmp_path):
    address, state = server
    state["ranges"] = False
    partial(tmp_path, server, b"x" * 2_000_000)
    download(address, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == state["content"]


@pytest.mark.parametrize("surplus", [0, 5])
def test_complete_and_foreign_partial_files(server, tmp_path, surplus):
    address, state = server
    partial(tmp_path, server, state["content"] + b"x" * surplus)
    download(address, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == state["content"]
    assert state["requests"] == [f"bytes={1_024_000 + surplus}-", None][: 1 + bool(surplus)]


def test_refusals_and_unreachable_servers_are_told(server, tmp_path):
    address, state = server
    state["status"] = 404
    with pytest.raises(UserError, match="the server answered 404"):
        download(address, tmp_path / "file.zip")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/.*broke off"):
        download("http://127.0.0.1:1/file.zip", tmp_path / "file.zip")


def test_addresses_and_destinations_that_cannot_be_are_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--download", str(tmp_path / "file" / "out")]) == 2
    assert "the directory cannot be made" in capsys.readouterr().err
    assert main(["--download", str(tmp_path / "out"), "--url", "nowhere"]) == 2
    assert "not an address to fetch" in capsys.readouterr().err


def test_download_command_fetches_and_converts(server, tmp_path, capsys):
    address, state = server
    state["content"] = archive(tmp_path / "a.zip", FILES).read_bytes()
    assert main(["--download", str(tmp_path / "out"), "--url", address]) == 0
    assert (tmp_path / "out" / "train.tfrecord").exists()
    assert "1 train, 1 validation, 1 test images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("validators", "goes_on"),
    [
        ({"ETag": '"1"'}, True),
        ({"Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}, True),
        ({"ETag": 'W/"1"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}, True),
        ({"ETag": 'W/"1"'}, False),
        ({}, False),
    ],
)
def test_only_what_can_be_told_apart_from_other_versions_goes_on(server, tmp_path, validators, goes_on):
    address, state = server
    state |= {"validators": validators, "breaks_after": 600_000}
    with pytest.raises(UserError, match="goes on from" if goes_on else "it begins anew"):
        download(address, tmp_path / "file.zip")
    del state["breaks_after"]
    download(address, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == state["content"]
    assert state["requests"] == [None, "bytes=600000-" if goes_on else None]
    assert left(tmp_path) == ["file.zip"]


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(server, tmp_path, ignores_if_range):
    address, state = server
    state |= {"breaks_after": 600_000, "ignores_if_range": ignores_if_range}
    with pytest.raises(UserError, match="broke off"):
        download(address, tmp_path / "file.zip")
    state |= {"content": b"other" * 300_000, "breaks_after": 10**9}
    download(address, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == state["content"]


def test_a_partial_file_of_another_address_or_of_none_is_not_gone_on_with(server, tmp_path):
    address, state = server
    partial(tmp_path, server, b"x" * 1000)
    download(address + "?other", tmp_path / "file.zip")
    (tmp_path / "other.zip.part").write_bytes(b"x" * 1000)
    download(address, tmp_path / "other.zip")
    assert state["requests"] == [None, None]
    assert (tmp_path / "file.zip").read_bytes() == (tmp_path / "other.zip").read_bytes() == state["content"]


@pytest.mark.parametrize("place", ["bytes 0-1023999/1024000", "bytes 1001-1023999/1024000", "bytes */1024000", "no place"])
def test_parts_that_do_not_begin_where_asked_are_not_appended(server, tmp_path, place):
    address, state = server
    partial(tmp_path, server, state["content"][:1000])
    state["place"] = place
    download(address, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == state["content"]
    assert state["requests"] == ["bytes=1000-", None]


@pytest.mark.parametrize(
    ("size", "length", "words"),
    [
        (SIZE + 1, True, "has 1,024,000 bytes, and should have 1,024,001"),
        (SIZE + 1, False, "has 1,024,000 bytes, and should have 1,024,001"),
        (1000, True, "has 1,024,000 bytes, and should have 1,000"),
        (1000, False, "has more than 1,000 bytes, and should have 1,000"),
    ],
)
def test_files_of_another_size_are_refused_and_removed(server, tmp_path, size, length, words):
    address, state = server
    state["length"] = length
    with pytest.raises(UserError, match=f"{address}: not the expected file: it {words}. What was fetched is removed"):
        download(address, tmp_path / "file.zip", size=size)
    assert left(tmp_path) == []


def test_the_size_is_known_when_a_download_goes_on(server, tmp_path):
    address, state = server
    partial(tmp_path, server, state["content"][:1000])
    with pytest.raises(UserError, match="has 1,024,000 bytes, and should have 1,500"):
        download(address, tmp_path / "file.zip", size=1500)
    assert left(tmp_path) == []


def test_the_sum_is_checked_of_new_files_and_of_old_ones(server, tmp_path):
    address, state = server
    right, wrong = hashlib.sha256(state["content"]).hexdigest(), "0" * 64
    with pytest.raises(UserError, match=f"{address}.*its SHA-256 is {right}, and should be {wrong}. What was fetched is removed"):
        download(address, tmp_path / "file.zip", sha256=wrong)
    assert left(tmp_path) == []
    for _ in range(2):
        download(address, tmp_path / "file.zip", size=SIZE, sha256=right.upper())
    assert state["requests"] == [None, None]
    for keys, words in (({"sha256": wrong}, f"SHA-256 is {right}"), ({"size": 5}, "has 1,024,000 bytes, and should have 5")):
        with pytest.raises(UserError, match=rf"{tmp_path}/file.zip: not the expected file.*{words}.*Remove it or move it away, and run"):
            download(address, tmp_path / "file.zip", **keys)
    assert (tmp_path / "file.zip").read_bytes() == state["content"]
    assert state["requests"] == [None, None]


def test_the_official_archive_is_checked_and_others_where_asked(server, tmp_path, capsys, monkeypatch):
    address, state = server
    content = state["content"] = archive(tmp_path / "a.zip", FILES).read_bytes()
    monkeypatch.setattr(converter, "URL", address)
    assert main(["--download", str(tmp_path / "out")]) == 2
    assert f"it has {len(content):,} bytes, and should have 248,100,043" in capsys.readouterr().err
    monkeypatch.setattr(converter, "ARCHIVE_BYTES", len(content))
    assert main(["--download", str(tmp_path / "out")]) == 2
    assert "should be 6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821" in capsys.readouterr().err
    assert left(tmp_path / "out") == []
    other = [f"{address}?mirror", "--sha256"]
    assert main(["--download", str(tmp_path / "out"), "--url", *other, "0" * 64]) == 2
    assert f"should be {'0' * 64}" in capsys.readouterr().err
    assert main(["--download", str(tmp_path / "out"), "--url", *other, hashlib.sha256(content).hexdigest()]) == 0
    (tmp_path / "out" / "train.tfrecord").unlink()
    assert main(["--download", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/out/tiny-imagenet-200.zip: not the expected file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--download", "out", "--sha256", "abc"], ["source", "out", "--sha256", "0" * 64]])
def test_sums_that_cannot_be_are_wrong_usage(arguments):
    with pytest.raises(SystemExit) as usage:
        main(arguments)
    assert usage.value.code == 2


def test_the_official_address_is_a_safe_one():
    assert converter.URL == "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
