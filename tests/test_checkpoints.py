"""Checkpoints: what is kept, what damaged files cost, and what a failed write leaves."""

import errno
import os

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.results.checkpoints import Checkpoints, RunRecord


class State:
    """Variables and record as a run has them, and their checkpoints."""

    def __init__(self, directory, keep=2):
        self.numbers = tf.Variable(np.zeros(100, np.float32))
        self.record = RunRecord({"seed": 3}, "data")
        self.checkpoints = Checkpoints(directory, keep=keep, n_bytes=400)
        self.state = tf.train.Checkpoint(numbers=self.numbers, record=self.record)

    def save(self, value):
        self.numbers.assign(tf.fill([100], float(value)))
        self.record.rows = [{"epoch": value}]
        return self.checkpoints.save(self.state)

    def restore(self):
        path = self.checkpoints.restore(self.state)
        return path, float(self.numbers[0]), self.record.rows


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def test_the_newest_are_kept_and_the_newest_is_restored(tmp_path):
    one = State(tmp_path)
    assert one.checkpoints.paths() == []
    assert one.checkpoints.read_record() is None
    paths = [one.save(i) for i in range(4)]
    assert one.checkpoints.paths() == paths[:1:-1]
    assert len(list(tmp_path.glob("ckpt-*"))) == 4
    other = State(tmp_path)
    record = other.checkpoints.read_record()
    assert (record["config"], record["data_sha256"], record["rows"]) == ({"seed": 3}, "data", [{"epoch": 3}])
    assert other.restore() == (paths[-1], 3.0, [{"epoch": 3}])
    assert other.save(4) == str(tmp_path / "ckpt-5")
    assert other.checkpoints.paths() == [str(tmp_path / "ckpt-5"), paths[-1]]


@pytest.mark.parametrize("damage", [cut, flip, os.unlink])
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_damaged_checkpoint_is_passed_over_and_goes_with_the_next(tmp_path, capsys, damage, suffix):
    one = State(tmp_path)
    first, second = one.save(1), one.save(2)
    damage(tmp_path / f"ckpt-2{suffix}")
    other = State(tmp_path)
    assert other.checkpoints.read_record()["rows"] in ([{"epoch": 1}], [{"epoch": 2}])
    assert other.restore() == (first, 1.0, [{"epoch": 1}])
    assert (f"{second}: damaged, passed over" in capsys.readouterr().out) == ((damage, suffix) != (os.unlink, ".index"))
    other.save(3)
    assert other.checkpoints.paths() == [second, first]  # its number again
    assert State(tmp_path).restore() == (second, 3.0, [{"epoch": 3}])


def test_without_any_whole_checkpoint_there_is_nothing_to_restore(tmp_path, capsys):
    State(tmp_path).save(1)
    flip(tmp_path / "ckpt-1.data-00000-of-00001")
    with pytest.raises(UserError, match=r"no checkpoint is whole.*initial_weights"):
        State(tmp_path).restore()
    cut(tmp_path / "ckpt-1.index")
    one = State(tmp_path)
    assert one.checkpoints.read_record() is None
    assert "ckpt-1: damaged, passed over" in capsys.readouterr().out
    one.save(1)
    assert State(tmp_path).restore()[1] == 1.0


def test_half_written_files_and_a_list_behind_them_do_no_harm(tmp_path):
    """A crash between the files and TensorFlow's list of them leaves a whole checkpoint that the list does not have."""
    one = State(tmp_path)
    one.save(1)
    state_file = (tmp_path / "checkpoint").read_bytes()
    second = one.save(2)
    (tmp_path / "checkpoint").write_bytes(state_file)
    (tmp_path / "ckpt-3_temp").mkdir()
    (tmp_path / "ckpt-3_temp" / "part-0").write_bytes(b"half")
    (tmp_path / "ckpt-3.data-00000-of-00001").write_bytes(b"whole, but not in the index")
    other = State(tmp_path)
    assert other.restore()[0] == second
    third = other.save(3)
    assert other.checkpoints.paths() == [third, second]
    assert not (tmp_path / "ckpt-3_temp").exists()
    other.save(4)
    assert not list(tmp_path.glob("ckpt-2*"))


def no_space(file):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("keep", [1, 2])
def test_failed_writes_keep_what_was_there_and_say_how_much_space_there_is(tmp_path, monkeypatch, keep):
    one = State(tmp_path, keep=keep)
    paths = [one.save(i) for i in range(3)][-keep:]
    for _ in range(2):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device") as failure:
            patched.setattr("mat.cli.files.os.fsync", no_space)
            one.save(3)
        assert failure.value.strerror.startswith("No space left on device (0.0 MB to write, ")
        assert one.checkpoints.paths() == paths[::-1]
    assert failure.value.filename == str(tmp_path / "ckpt-5")
    assert State(tmp_path).restore()[1:] == (2.0, [{"epoch": 2}])
    last = one.save(4)
    assert one.checkpoints.paths() == [last, *paths[::-1]][:keep]


def test_a_write_that_tensorflow_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    one = State(tmp_path)
    first = one.save(1)

    def fail(manager, **_):
        (tmp_path / "ckpt-2_temp").mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, "{{function_node x}} ckpt-2_temp/part; No space left on device [Op:SaveV2]")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device") as failure:
        patched.setattr(tf.train.CheckpointManager, "save", fail)
        one.save(2)
    assert failure.value.filename == str(tmp_path / "ckpt-2")
    assert failure.value.strerror.startswith("No space left on device (0.0 MB")
    assert not (tmp_path / "ckpt-2_temp").exists()
    assert State(tmp_path).restore()[0] == first


def test_a_list_that_cannot_be_written_does_not_cost_the_new_checkpoint(tmp_path, monkeypatch):
    """TensorFlow writes its list twice, and removes the old checkpoint between the two."""
    one = State(tmp_path, keep=1)
    one.save(1)
    record_state = tf.train.CheckpointManager._record_state

    def second_fails(manager):
        if len(manager.checkpoints) == 1:
            raise tf.errors.UnknownError(None, None, "checkpoint; No space left on device")
        record_state(manager)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device"):
        patched.setattr(tf.train.CheckpointManager, "_record_state", second_fails)
        one.save(2)
    assert State(tmp_path).restore()[1] == 2.0


def test_a_checkpoint_out_of_reach_is_not_damaged(tmp_path, monkeypatch):
    State(tmp_path).save(1)

    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    one = State(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", denied)
        for read in (one.checkpoints.read_record, one.restore):
            with pytest.raises(PermissionError):
                read()
    assert one.restore()[1] == 1.0
