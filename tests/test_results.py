"""What a run leaves: checkpoints that survive damage and failed writes, TensorBoard events, the log, the picture of the bank."""

import errno
import os

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.results.checkpoints import Checkpoints, RunRecord
from mat.results.events import Events, written_tags
from mat.results.run_directory import ResultDirectory, patch_grid
from mat.results.run_files import weights_files


class State:
    """Variables and record as a run has them, and their checkpoints."""

    def __init__(self, directory, keep=2):
        self.numbers = tf.Variable(np.zeros(100, np.float32))
        self.record = RunRecord({"seed": 3}, "data")
        self.checkpoints = Checkpoints(directory, keep=keep)
        self.state = tf.train.Checkpoint(numbers=self.numbers, record=self.record)

    def save(self, value):
        self.numbers.assign(tf.fill([100], float(value)))
        self.record.rows = [{"epoch": value}]
        return self.checkpoints.save(self.state, n_bytes=400)

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
    assert tf.train.latest_checkpoint(str(tmp_path)) == paths[-1]
    other = State(tmp_path)
    record = other.checkpoints.read_record()
    assert (record["config"], record["data_sha256"], record["rows"]) == ({"seed": 3}, "data", [{"epoch": 3}])
    assert other.restore() == (paths[-1], 3.0, [{"epoch": 3}])
    assert other.save(4) == str(tmp_path / "ckpt-5")
    assert other.checkpoints.paths() == [str(tmp_path / "ckpt-5"), paths[-1]]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert tf.train.latest_checkpoint(str(moved)) == str(moved / "ckpt-5")


def test_copies_under_other_names_are_no_weights_of_the_run(tmp_path):
    names = ["tiny_imagenet_weights_099.h5", "tiny_imagenet_weights_100.h5", "tiny_imagenet_weights_1000.h5"]
    for name in (*names[::-1], "tiny_imagenet_weights_100_old.h5", "tiny_imagenet_weights_best.h5", "network_2.weights.h5.bak"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in weights_files(tmp_path)] == names
    assert weights_files(tmp_path / "missing") == []


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


def test_what_a_crash_leaves_does_no_harm_and_goes(tmp_path):
    """Half-written files, and a checkpoint that is not yet in TensorFlow's list of them."""
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


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_in_tensorflow(*_, **__):
    raise tf.errors.ResourceExhaustedError(None, None, "{{function_node x}} ckpt-2_temp/part; No space left on device [Op:SaveV2]")


tensorflow_save = tf.train.Checkpoint.save


def no_space_for_the_list(*arguments, **keywords):
    """The checkpoint is written, and TensorFlow's list of checkpoints is not."""
    tensorflow_save(*arguments, **keywords)
    no_space_in_tensorflow()


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(
    ("what", "fail", "new_is_whole"),
    [
        ("mat.cli.files.os.fsync", no_space, False),
        ("tensorflow.train.Checkpoint.save", no_space_in_tensorflow, False),
        ("tensorflow.train.Checkpoint.save", no_space_for_the_list, True),
    ],
)
def test_failed_writes_keep_what_was_there_and_say_how_much_space_there_is(tmp_path, monkeypatch, keep, what, fail, new_is_whole):
    one = State(tmp_path, keep=keep)
    paths = [one.save(i) for i in range(3)][-keep:]
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device") as failure:
        patched.setattr(what, fail)
        one.save(3)
    assert failure.value.strerror.startswith("No space left on device (0.0 MB to write, ")
    assert failure.value.filename == str(tmp_path / "ckpt-4")
    assert one.checkpoints.paths() == ([failure.value.filename] if new_is_whole else []) + paths[::-1]
    assert State(tmp_path).restore()[1] == (3.0 if new_is_whole else 2.0)
    last = one.save(4)
    assert one.checkpoints.paths()[0] == last
    assert len(one.checkpoints.paths()) == keep


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
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


def write(events, epochs):
    for epoch in epochs:
        events.write(epoch, {"loss": 0.5, "accuracy": 0.1}, {"patches": np.zeros([4, 4, 3], np.uint8)})


@pytest.mark.parametrize("damage", [lambda content: content, lambda content: content[:-7], lambda content: content[:-20] + b"\xff" * 20])
def test_events_are_written_once_whatever_an_interruption_left(tmp_path, damage):
    (tmp_path / "notes.txt").write_text("mine")
    write(Events(tmp_path), range(3))
    path = next(tmp_path.glob("*tfevents*"))
    path.write_bytes(damage(path.read_bytes()))
    write(Events(tmp_path), range(1, 4))
    everything = sorted((tag, epoch) for tag in ("loss", "accuracy", "patches") for epoch in range(4))
    assert written_tags(tmp_path) == everything
    content = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(Events(tmp_path), range(4))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == content


def test_an_event_file_that_cannot_be_opened_is_told(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "events.out.tfevents.1").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"events.out.tfevents.1: cannot be used: No such file or directory"):
        ResultDirectory(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("robust", "measured", "header", "row"),
    [
        (False, {}, "", ""),
        (True, {}, ";Robust Accuracy", ";"),
        (False, {"robust_accuracy": 0.125}, ";Robust Accuracy", ";0.125"),  # measured before, and not wanted again
    ],
)
def test_the_log_has_the_column_of_robustness_where_it_is_wanted_or_known(tmp_path, robust, measured, header, row):
    results = ResultDirectory(tmp_path)
    results.write_log([{"epoch": 0, "loss": 1.5, "accuracy": 0.25, "validation_accuracy": 0.5} | measured], robust=robust)
    text = f"Epoch;Train Loss;Train Accuracy;Valid Accuracy{header}\r\n0.000;1.500;0.250;0.500{row}\r\n"
    assert (results.path / "log.csv").read_bytes() == text.encode()


def test_patch_grid_shows_every_patch_in_its_place():
    patches = np.linspace(0, 1, 5, dtype=np.float32).reshape(5, 1, 1, 1) * np.ones((5, 12, 12, 3), np.float32)
    grid = patch_grid(patches)
    cell = 4 * 12 + 2
    assert grid.shape == (2 * cell, 3 * cell, 3)
    centers = grid[cell // 2 :: cell, cell // 2 :: cell, 0]
    np.testing.assert_array_equal(centers, [[0, 64, 128], [191, 255, 255]])
