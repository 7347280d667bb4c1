"""Runs that are interrupted, damaged or hindered: what they leave, and that they end as if nothing had happened."""

import errno
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest

from mat.cli.errors import NonFiniteLossError, StoppedError, UserError
from mat.config import PatchTrainingConfig
from mat.results.events import written_tags
from mat.results.run_directory import ResultDirectory
from mat.tools.interruptions import compare
from tests.conftest import stop_at, trainer_of, write_tiny_split

PLAIN = {"n_patches": 0, "n_stacks": 1, "n_epochs": 3}  # a step that is quickly compiled


@pytest.fixture
def plain_config(tiny_config):
    """As `tiny_config`, for plain training of three epochs of four steps."""
    return lambda **keys: tiny_config(**PLAIN | keys)


def weights(config):
    return (config.result_dir / f"tiny_imagenet_weights_{config.n_epochs - 1:03d}.h5").read_bytes()


def assert_same_end(one, other):
    assert weights(one) == weights(other)
    assert (one.result_dir / "log.csv").read_bytes() == (other.result_dir / "log.csv").read_bytes()
    assert written_tags(one.result_dir / "events") == written_tags(other.result_dir / "events")


def test_interruptions_at_any_moment_change_nothing(tmp_path):
    """Three SIGKILLs, one of them within a checkpoint, a SIGTERM and a Ctrl-C; `python -m mat.tools.interruptions` does more of them."""
    happened, different = compare(tmp_path, n_kills=3, seed=0)
    assert different == []
    assert sorted(status for _, _, status, *_ in happened) == [-9, -9, -9, 130, 143]


def test_stopped_steps_and_validations_are_taken_up_where_they_were(plain_config, monkeypatch, capsys):
    whole, broken = plain_config(unique_name="whole"), plain_config(unique_name="broken")
    trainer_of(whole).fit()
    trainer = trainer_of(broken)
    stop_at(trainer, step=6)
    with pytest.raises(StoppedError, match=r"after epoch 2 of 3, step 2 of 4; all of it is saved.*broken/config.yaml --resume") as stop:
        trainer.fit()
    assert stop.value.exit_status == 143
    trainer = trainer_of(PatchTrainingConfig.from_yaml(broken.result_dir / "config.yaml"), resume=True)
    train_epoch = trainer._train_epoch

    def then_stop(epoch, progress):
        train_epoch(epoch, progress)
        os.kill(os.getpid(), signal.SIGINT)  # comes in the validation

    monkeypatch.setattr(trainer, "_train_epoch", then_stop)
    with pytest.raises(StoppedError, match=r"after epoch 2 of 3, step 4 of 4"):
        trainer.fit()
    assert not (broken.result_dir / "tiny_imagenet_weights_001.h5").exists()
    capsys.readouterr()
    assert len(trainer_of(broken, resume=True).fit().accuracies) == 2
    assert "resuming after epoch 2 of 3, step 4 of 4" in capsys.readouterr().out
    assert_same_end(whole, broken)
    assert trainer_of(broken, resume=True).fit().accuracies == []
    assert "finished" in capsys.readouterr().out
    assert_same_end(whole, broken)


def test_what_a_checkpoint_covers_is_on_the_disk_before_it(plain_config, monkeypatch):
    config = plain_config(n_epochs=1, checkpoint_every_minutes=1e-6)
    trainer = trainer_of(config)
    save, covered = trainer.run.results.checkpoints.save, []

    def kept(state, **keys):
        steps = [step for tag, step in written_tags(config.result_dir / "events") if tag == "step/loss"]
        covered.append((int(trainer.run.step.step), steps))
        return save(state, **keys)

    monkeypatch.setattr(trainer.run.results.checkpoints, "save", kept)
    trainer.fit()
    assert covered == [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (4, [1, 2, 3, 4])]


def test_a_whole_run_is_resumed_from_an_older_checkpoint_where_the_newest_is_damaged(plain_config, capsys):
    config = plain_config()
    trainer_of(config).fit()
    log, events = config.result_dir / "log.csv", config.result_dir / "events"
    before = weights(config), log.read_bytes(), written_tags(events)
    newest = max((config.result_dir / "checkpoints").glob("ckpt-*.data*"))
    newest.write_bytes(newest.read_bytes()[:1000])
    log.write_bytes(before[1][:-5])  # half a line
    shutil.rmtree(events)  # is written again from what the checkpoint knows
    assert len(trainer_of(config, resume=True).fit().accuracies) == 1
    output = capsys.readouterr().out
    assert "ckpt-3: damaged, passed over" in output
    assert "resuming after epoch 2 of 3" in output
    assert (weights(config), log.read_bytes()) == before[:2]
    not_in_checkpoints = {"images_per_second": 2, "step/loss": 9, "step/accuracy": 9}  # from the epoch or step that was made again
    assert {(tag, n) for tag, n in before[2] if n >= not_in_checkpoints.get(tag, 0)} == set(written_tags(events))


def test_resuming_needs_the_same_config_and_data_but_not_the_same_places(plain_config, tmp_path, tiny_data, monkeypatch, capsys):
    config = plain_config(n_epochs=2)
    trainer = trainer_of(config)
    stop_at(trainer, step=3)
    with pytest.raises(StoppedError):
        trainer.fit()
    with pytest.raises(UserError, match="this run has width: 1, seed: 0, and the config has width: 2, seed: 1") as refusal:
        trainer_of(plain_config(n_epochs=2, seed=1, width=2), resume=True)
    assert str(config.result_dir) in str(refusal.value)
    path = config.result_dir / "config.yaml"
    path.write_text(path.read_text().replace("n_epochs: 2", "n_epochs: 3"))  # the checkpoint knows better
    with pytest.raises(UserError, match="n_epochs: 2, and the config has n_epochs: 3"):
        trainer_of(PatchTrainingConfig.from_yaml(path), resume=True)
    shutil.copytree(tiny_data, tmp_path / "moved data")
    shutil.move(config.result_dir, tmp_path / "moved run")
    moved = plain_config(n_epochs=2, data_dir=str(tmp_path / "moved data"), base_result_dir=str(tmp_path), unique_name="moved run")
    trainer_of(moved.replace(checkpoint_every_minutes=1.0, checkpoints_to_keep=1), resume=True).fit()
    assert len(list((tmp_path / "moved run" / "checkpoints").glob("*.index"))) == 1
    write_tiny_split(tmp_path / "moved data", "train", np.arange(40) % 4)
    with pytest.raises(UserError, match=f"moved data: not the data that the run in {tmp_path}/moved run was begun with"):
        trainer_of(moved, resume=True)


def test_keys_that_no_result_depends_on_may_change():
    config = PatchTrainingConfig()
    assert config.changeable() == {
        *("base_result_dir", "unique_name", "data_dir", "bad_records", "max_bad_records", "checkpoint_every_minutes"),
        *("checkpoints_to_keep", "robust_evaluation", "plain_baseline", "log_every_steps", "steps_per_call", "distribution"),
    }
    other = config.replace(evaluation=config.evaluation.replace(images_at_once=64, iterations=7), n_epochs=9, data_dir="moved")
    assert config.differences(other) == [("n_epochs", 75, 9), ("evaluation.iterations", 1000, 7)]


def test_results_without_their_checkpoints_are_not_overwritten_but_for_a_first_epoch_that_broke_off(plain_config, capsys):
    config = plain_config(n_epochs=2)
    trainer_of(config).fit()
    shutil.rmtree(config.result_dir / "checkpoints")
    with pytest.raises(UserError, match=r"no checkpoint to resume from\. Remove the directory .*initial_weights: .*weights_001\.h5"):
        trainer_of(config, resume=True)
    end = weights(config)
    (config.result_dir / "tiny_imagenet_weights_001.h5").unlink()
    (config.result_dir / "checkpoints").mkdir()
    (config.result_dir / "checkpoints" / "ckpt-1.index").write_bytes(b"half")  # killed in its first checkpoint
    with pytest.raises(UserError, match="seed: 0, and the config has seed: 1"):
        trainer_of(plain_config(n_epochs=2, seed=1), resume=True)
    trainer_of(config, resume=True).fit()
    output = capsys.readouterr().out
    assert "ckpt-1: damaged, passed over" in output
    assert "no checkpoint to resume from; starting afresh" in output
    assert weights(config) == end
    assert {path.name[:6] for path in (config.result_dir / "checkpoints").glob("ckpt-*")} == {"ckpt-1", "ckpt-2"}


def test_a_second_run_on_a_directory_is_refused(plain_config):
    config = plain_config(n_epochs=1)
    trainer, second = trainer_of(config), trainer_of(config)
    with trainer.run.results.opened():
        with pytest.raises(UserError, match=f"lock: in use by process {os.getpid()} on .*another unique_name"):
            ResultDirectory(config.result_dir, resume=True)
        with pytest.raises(UserError, match="exists already"):
            second.fit()
    one, other = trainer_of(config, resume=True), trainer_of(config, resume=True)
    one.fit()
    with pytest.raises(UserError, match="another process has continued this run in the meantime"):
        other.fit()


# Disks that are full, read-only or gone.


def full_after(n_files, monkeypatch):
    """Let all but the first `n_files` files of this program fail as on a full disk."""
    written = []

    def fsync(file):
        written.append(file)
        if len(written) > n_files:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mat.cli.files.os.fsync", fsync)


@pytest.mark.parametrize(
    ("n_files", "name"),
    [
        (0, "config.yaml"),
        (1, "classes.txt"),
        (2, "log.csv"),
        (3, "weights_000.h5"),
        (4, "events"),
        (6, "ckpt-1"),
        (8, "weights_001.h5"),
        (11, "ckpt-2"),
    ],
)
def test_a_full_disk_ends_the_run_with_a_message_and_loses_nothing(plain_config, monkeypatch, n_files, name):
    """Files in the order of writing: config, classes, log; then for each epoch weights, events, log, and the two of the checkpoint."""
    config = plain_config(n_epochs=2)
    trainer = trainer_of(config)
    with monkeypatch.context() as patched, pytest.raises(UserError) as failure:
        full_after(n_files, patched)
        trainer.fit()
    message = str(failure.value)
    assert f"{name}: cannot be read or written: No space left on device (0." in message
    assert "MB are free there" in message
    assert not list(config.result_dir.rglob("*.part"))
    assert ("The newest checkpoint is" in message) == (n_files >= 8)
    trainer_of(config, resume=True).fit()
    assert len((config.result_dir / "log.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("keys", "step", "error", "words"),
    [
        (
            {"checkpoint_every_minutes": 1e-6},
            1,
            UserError,
            r"events: cannot be read .*: No space left.*The newest checkpoint is .*ckpt-1\.",
        ),
        ({}, 2, StoppedError, "all of it is saved"),
        ({"initial_lr": 1e38, "normalization": "none", "weight_decay": 1000.0}, 1, NonFiniteLossError, "is saved as .*ckpt-1"),
    ],
    ids=["checkpoint", "stop signal", "not finite"],
)
def test_where_only_the_events_cannot_be_written_the_run_ends_with_a_checkpoint(
    plain_config, monkeypatch, capsys, keys, step, error, words
):
    config = plain_config(log_every_steps=1, **keys)
    trainer = trainer_of(config)
    if error is StoppedError:
        stop_at(trainer, step=step)

    def fail(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mat.results.events.sync", fail)
    with pytest.raises(error, match=words):
        trainer.fit()
    assert "events: cannot be written: No space left" in capsys.readouterr().out
    assert int(trainer_of(config, resume=True).run.step.step) == step


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 500 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=500k", "tmpfs", path], capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the rights to mount one")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_on_a_disk_that_is_really_full_the_last_checkpoint_is_whole(plain_config, small_disk, capfd):
    whole, config = plain_config(unique_name="whole", n_epochs=8), plain_config(base_result_dir=str(small_disk), n_epochs=8)
    trainer_of(whole).fit()
    with pytest.raises(
        UserError, match=r"cannot be read or written: .*No space left on device \(0\.\d MB to write, 0\.\d MB are free there\)"
    ):
        trainer_of(config).fit()
    assert "Traceback" not in capfd.readouterr().err
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    trainer_of(config, resume=True).fit()
    assert_same_end(whole, config)


def test_a_lost_picture_does_not_end_the_run(tiny_config, monkeypatch, capsys):
    config = tiny_config(n_epochs=1)
    trainer = trainer_of(config)
    config.result_dir.mkdir(parents=True)
    (config.result_dir / "patches.png").mkdir()
    trainer.run.results._resume = True
    assert len(trainer.fit().accuracies) == 1
    assert "patches.png: cannot be written: Is a directory" in capsys.readouterr().out


# Numbers that are not finite.


def test_a_step_that_is_not_finite_leaves_the_state_before_it(plain_config, capsys):
    keys = {"initial_lr": 1000.0, "normalization": "none", "weight_decay": 1000.0}
    config = plain_config(**keys)
    trainer = trainer_of(config)
    with pytest.raises(
        NonFiniteLossError, match=r"at step (\d+) .*not made; the state before it is saved as .*/checkpoints/ckpt-\d"
    ) as failure:
        trainer.fit()
    step = int(str(failure.value).split("at step ")[1].split()[0])
    resumed = trainer_of(config, resume=True)
    assert int(resumed.run.step.step) == step - 1 == int(trainer.run.step.step)
    for one, other in zip(trainer.run.model.get_weights(), resumed.run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.all(np.isfinite(one))
    with pytest.raises(NonFiniteLossError, match=f"at step {step} "):  # the same again
        resumed.fit()


@pytest.mark.parametrize(("log_every_steps", "name"), [(1, "events"), (100, "ckpt-1")])
def test_a_directory_that_is_gone_ends_the_run_and_is_not_made_again(plain_config, log_every_steps, name):
    config = plain_config(checkpoint_every_minutes=1e-6, log_every_steps=log_every_steps)
    trainer = trainer_of(config)
    train_on_batch = trainer.run.step.train_on_batch

    def train_and_lose(images, labels):
        shutil.rmtree(config.result_dir, ignore_errors=True)
        return train_on_batch(images, labels)

    trainer.run.step.train_on_batch = train_and_lose
    with pytest.raises(UserError, match=f"{name}: cannot be read or written: No such file or directory"):
        trainer.fit()
    assert not config.result_dir.exists()


def test_directories_out_of_reach_end_in_a_message(plain_config, monkeypatch):
    config = plain_config(n_epochs=1)
    trainer = trainer_of(config)

    def out_of_reach(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    def lose(*_, **__):
        monkeypatch.setattr("pathlib.Path.iterdir", out_of_reach)
        raise OSError(errno.EIO, "Input/output error", "log.csv")

    monkeypatch.setattr(trainer.run.results, "write_log", lose)
    with pytest.raises(UserError, match=r"log\.csv: cannot be read or written: Input/output error\. The checkpoints are out of reach too"):
        trainer.fit()
    (config.result_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match=r"checkpoints: cannot be used: Stale file handle"):
        trainer_of(config, resume=True)
