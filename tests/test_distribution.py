"""Several devices and several workers: they share each batch, and the run is that of one device."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from mat.api import measuring
from mat.cli.errors import LostWorkerError, StoppedError, UserError
from mat.config import PatchTrainingConfig
from mat.data.demo import draw_image
from mat.data.reading import read_records
from mat.data.records import make_example, record_path, write_records
from mat.data.tiny_imagenet import shared_validation_dataset, train_dataset
from mat.distribution import strategy as strategies
from mat.distribution import tf_config, workers
from mat.distribution.replicas import FILLING, Replicas
from mat.models.own_network_checks import check_shareable
from mat.results.events import read_values
from mat.results.run_directory import FollowerDirectory
from mat.robustness.store import ReportDirectory
from mat.run import build_run
from mat.seeds import generator
from tests.conftest import GOLDEN, trainer_of, write_tiny_split

EVALUATION = {"iterations": 5, "n_fit_images": 16, "images_per_iteration": 4, "n_targets": 1, "n_controls": 1}
ROOT = pathlib.Path(__file__).parent.parent
UNTARGETED = {"n_iterations": 3, "targeted_attack": False, "max_step_size": 3e-4}  # small steps: a sign that rounding flips moves little


@pytest.mark.parametrize(
    ("batch_size", "total", "expected"), [(6, 3, [[0, 1], [2, 3], [4, 5]]), (8, 3, [[0, 1, 2], [3, 4, 5], [6, 7, -1]])]
)
def test_replicas_share_a_batch_in_its_order(batch_size, total, expected):
    batches = np.arange(batch_size)[np.newaxis] + [[0], [100]]
    shares = [Replicas(first, 1, total).shares_of(batches) for first in range(total)]
    assert FILLING == -1
    np.testing.assert_array_equal([share[0] for share in shares], expected)
    assert all(share.shape == (2, len(expected[0])) for share in shares)
    both = Replicas(1, 2, total).shares_of(batches)
    np.testing.assert_array_equal(both, [shares[1][0], shares[2][0], shares[1][1], shares[2][1]])


SIZES = {"batch_size": 8, "n_classes": 4, "image_size": 16}


@pytest.mark.parametrize("total", [2, 3])
def test_the_shares_of_all_replicas_are_the_batches_and_nothing_else_is_decoded(tiny_data, total):
    records, arguments = read_records(tiny_data, "train", n_classes=4), {**SIZES, "label_smoothing": 0.1, "seed": 3, "epoch": 1}
    shares = []
    for first in range(total):
        replicas = Replicas(first, 1, total)
        own = replicas.shares_of(generator(3, "order/1").permutation(32).reshape(-1, 8))
        images = records.images.numpy()
        images[np.setdiff1d(np.arange(32), np.maximum(own, 0))] = b"no image"
        shares.append(list(train_dataset(records._replace(images=tf.constant(images)), **arguments, replicas=replicas)))
    for i, batch in enumerate(train_dataset(records, **arguments)):
        for whole, *parts in zip(batch, *(share[i] for share in shares), strict=True):
            np.testing.assert_array_equal(tf.concat(parts, axis=0)[:8], whole)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_each_validation_image_counts_once(tiny_data, total):
    records = read_records(tiny_data, "validation", n_classes=4)  # 12: one batch and a half
    datasets = [shared_validation_dataset(records, **SIZES, replicas=Replicas(first, 1, total)) for first in range(total)]
    shares, cached = ([list(dataset) for dataset in datasets] for _ in range(2))
    for (images, _), (again, _) in zip(sum(shares, []), sum(cached, []), strict=True):
        np.testing.assert_array_equal(images, again)
    assert {images.shape for share in shares for images, _ in share} == {(-(-8 // total), 16, 16, 3)}
    labels = np.concatenate([share[i][1] for i in range(2) for share in shares])
    np.testing.assert_array_equal(labels[labels.any(axis=1)].argmax(axis=1), records.labels)
    assert len(labels) > 12 or total == 1


def set_workers(monkeypatch, cluster, index=0, kind="worker"):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))


def test_workers_are_numbered_from_the_chief_on(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert tf_config.read_cluster() is None
    set_workers(monkeypatch, {"worker": ["a:1"]})
    assert tf_config.read_cluster() is None
    set_workers(monkeypatch, {"worker": ["a:1", "b:2"]}, 1)
    assert tf_config.read_cluster().name == "worker 1 of 2 (b:2)"
    set_workers(monkeypatch, {"worker": ["b:2", "c:3"], "chief": ["a:1"]}, 1)
    assert tf_config.read_cluster().name == "worker 2 of 3 (c:3)"
    set_workers(monkeypatch, {"worker": ["b:2", "c:3"], "chief": ["a:1"]}, 0, "chief")
    assert tf_config.read_cluster().index == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"must be of the form .*HOST:PORT.* Received: \{"),
        ("[]", "must be of the form"),
        ('{"cluster": {"worker": ["a", "b:1"]}}', "must be of the form"),
        ('{"cluster": {"worker": 3}}', "must be of the form"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"index": "x"}}', "must be of the form"),
        ('{"cluster": {"worker": ["a:1", "b:1"], "ps": ["c:1"]}, "task": {"index": 0}}', "chief or worker.* Received: ps"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "evaluator", "index": 0}}', "Received: evaluator"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "task worker 2 is none of those"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 1}}', "address of its own"),
    ],
)
def test_a_damaged_tf_config_is_told(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=f"^TF_CONFIG.*{message}"):
        tf_config.read_cluster()


def test_auto_takes_what_there_is(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    made = []
    monkeypatch.setattr(strategies, "_make_strategy", lambda *arguments: made.append(arguments[0]))
    for n_gpus, cluster in [(0, None), (1, None), (2, None), (2, {"worker": ["a:1"]}), (2, {"worker": ["a:1", "b:1"]})]:
        monkeypatch.setattr(strategies.tf.config, "get_visible_devices", lambda _, n=n_gpus: [None] * n)
        if cluster:
            set_workers(monkeypatch, cluster)
        strategies.make_strategy("auto")
        if n_gpus == 2:
            strategies.make_strategy("none")
    assert made == ["none", "none", "mirrored", "none", "mirrored", "none", "multi_worker", "none"]
    monkeypatch.delenv("TF_CONFIG")
    with pytest.raises(UserError, match="distribution: multi_worker needs the environment variable TF_CONFIG"):
        strategies.make_strategy("multi_worker")


def test_several_workers_must_be_the_first_that_tensorflow_does(monkeypatch):
    set_workers(monkeypatch, {"worker": ["localhost:1", "localhost:2"]})
    tf.zeros([])
    with pytest.raises(UserError, match="must be set up before TensorFlow computes anything .* make this the first call; or .* none"):
        strategies.make_strategy("auto")


@pytest.mark.parametrize(
    ("index", "model", "message"),
    [
        (1, keras.Sequential(), "a model in memory is evaluated by one process. Call this on worker 0 alone"),
        (0, "results", "output is needed"),
    ],
)
def test_what_several_workers_cannot_evaluate_from_python_is_refused(monkeypatch, index, model, message):
    monkeypatch.setattr(measuring, "_config_of", lambda *_, **__: (PatchTrainingConfig(), None))
    set_workers(monkeypatch, {"worker": ["a:1", "b:2"]}, index)
    with pytest.raises(UserError, match=rf"^worker {index} of 2 .*: {message}"):
        measuring.evaluate(model)


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("Collective ops is aborted by: Connection reset\n/job:worker/replica:0/task:2 while calling", "worker 3 (d:1)"),
        ("Collective ops is aborted by: Error from /job:worker/replica:0/task:1: its peer /job:chief/replica:0/task:0", "worker 0 (a:1)"),
        ("Collective ops is aborted by: Deadline Exceeded\nRPC: /tensorflow.CoordinationService/Heartbeat", "worker 0 (a:1)"),
    ],
)
def test_a_lost_worker_is_named_and_other_errors_are_not_taken_for_one(monkeypatch, text, who):
    def fail(message):
        with workers.report_lost_workers("Do this"):
            raise tf.errors.UnavailableError(None, None, message)

    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(tf.errors.UnavailableError):
        fail(text)
    set_workers(monkeypatch, {"chief": ["a:1"], "worker": ["b:1", "c:1", "d:1"]}, 1)
    with pytest.raises(LostWorkerError, match=rf"^worker 2 of 4 \(c:1\): {re.escape(who)} does not answer any more.* Do this$"):
        fail(text)
    with pytest.raises(tf.errors.UnavailableError):
        fail("the disk is gone")


@pytest.mark.parametrize(("rows", "worker"), [([[1, 2], [1, 2], [1, 2], [1, 3]], 1), ([[1, 2], [1, 2], [1, 2], [1, 2]], None)])
def test_workers_that_differ_are_told(monkeypatch, rows, worker):
    """Two workers of two replicas each."""
    monkeypatch.setattr(workers, "n_workers", lambda _: 2)
    monkeypatch.setattr(workers, "_table", lambda *_: np.array(rows))
    if worker is None:
        workers.check_same(None, {"config": "a", "data": "b"})
    else:
        with pytest.raises(UserError, match=f"^worker {worker} has another data than worker 0"):
            workers.check_same(None, {"config": "a", "data": "b"})


@pytest.mark.parametrize(("own", "others", "status"), [(0, 0, None), (signal.SIGTERM, 0, 143), (0, signal.SIGINT, 130)])
def test_a_signal_to_one_worker_ends_all_of_them(monkeypatch, own, others, status):
    monkeypatch.setattr(workers, "n_workers", lambda _: 2)
    monkeypatch.setattr(workers, "_table", lambda _, numbers: np.array([numbers, [others]]))
    with workers.stopped_together(None, "Stopped") as stop_if_asked:
        if own:
            os.kill(os.getpid(), own)
        if status is None:
            stop_if_asked()
        else:
            with pytest.raises(StoppedError, match="Stopped") as stopped:
                stop_if_asked()
            assert stopped.value.exit_status == status


def test_workers_other_than_the_chief_write_nothing(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "n_workers", lambda _: 2)
    monkeypatch.setattr(workers, "_table", lambda _, numbers: np.array([numbers, numbers]))
    monkeypatch.setattr(workers, "_SEEN_WITHIN", 0.2)
    run = build_run(tiny_config())
    follower = FollowerDirectory(tmp_path / "run", resume_config=tmp_path / "config.yaml")
    with follower.opened():
        follower.save_config(run.config, comment="x")
        follower.write_log([])
        follower.write_events({"epoch": 0.0}, loss=1.0)
        follower.write_step(1, loss=1.0)
        follower.save_class_names(["a"])
        follower.save_weights(run.model, 0)
        follower.save_network(run.model)
        follower.remove_network()
        follower.save_bank(run.bank, 0)
        follower.save_checkpoint(run.state, n_bytes=1, ending=True)
    assert not (tmp_path / "run").exists()
    assert int(run.state.save_counter) == 1  # as on the chief
    with pytest.raises(UserError, match=f"^{follower.path}: not all workers see what worker 0 writes there. Set base_result_dir"):
        workers.check_shared(run.strategy, follower.path / "config.yaml")
    workers.check_shared(run.strategy, tmp_path)
    assert follower.resume_command == f"python mat/train.py {tmp_path}/config.yaml --resume"
    report = ReportDirectory(tmp_path / "report", {"seed": 0}, writes=False)
    report.create()
    report.save("name", patch=np.zeros(1))
    report.write_report({"report.json": b"{}"})
    assert not (tmp_path / "report").exists()


def test_batch_normalization_over_shares_is_told_and_over_replicas_refused(tiny_config, monkeypatch, capsys):
    for normalization, told in (("batch", True), ("strip", False)):
        run = build_run(tiny_config(normalization=normalization, unique_name=normalization))
        run.print_plan()
        assert "replicas" not in capsys.readouterr().out
        monkeypatch.setattr("mat.run.describe_strategy", lambda _: "2 replicas that share each batch")
        run.print_plan()
        output = capsys.readouterr().out
        monkeypatch.undo()
        assert "; 2 replicas that share each batch" in output
        assert ("batch normalization is over a share: results depend on the number of replicas" in output) is told
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization(synchronized=True)])
    plain = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization()])
    check_shareable(model, "net", n_replicas=1, batch_size=8)
    with pytest.raises(UserError, match=r"^batch_size: 8 is not shared evenly by 3 replicas.* Set batch_size: 6, or distribution: none"):
        check_shareable(plain, "net", n_replicas=3, batch_size=8)
    with pytest.raises(UserError, match=r"^net: has layers with synchronized=True.* distribution: none"):
        check_shareable(model, "net", n_replicas=2, batch_size=8)


def test_replicas_of_one_process_give_the_run_of_one_device(tmp_path):
    """The golden weights, ten steps: draws and selections exactly, the rest within 1e-5; an evaluation to the bit."""
    rng = np.random.default_rng(0)
    for split, n_images in {"train": 40, "validation": 13}.items():
        pictures = [tf.io.encode_jpeg(np.tile(draw_image(i % 10, rng), (2, 2, 1))).numpy() for i in range(n_images)]
        write_records(record_path(tmp_path, split), [make_example(each, "n0", i % 12, (0, 0, 63, 63)) for i, each in enumerate(pictures)])
    keys = {"width": 1, "batch_size": 8, "n_epochs": 2, "n_patches": 12, "n_patch_trials": 3, "initial_lr": 1e-3, "optimizer": UNTARGETED}
    keys |= {"data_dir": str(tmp_path), "base_result_dir": str(tmp_path), "initial_weights": str(GOLDEN / "original_w1.h5")}
    PatchTrainingConfig(**keys, robust_evaluation="none").to_yaml(tmp_path / "config.yaml")

    for numbers in (["1", "2"], ["4"]):
        command = [sys.executable, ROOT / "tests" / "replicas.py", tmp_path / "config.yaml", tmp_path, *numbers]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, *others = (dict(np.load(tmp_path / f"{n}.npz")) for n in (1, 2, 4))
    assert one["selected"].shape == (10, 8, 3)  # index, row and column
    assert others[0].keys() >= {"fitted", "losses", "predictions"}
    for other in others:
        for name in {"selected", "fitted", "losses", "predictions"} & other.keys():
            np.testing.assert_array_equal(other[name], one[name], name)
        for name in ("bank", "weights", "rows"):
            assert np.linalg.norm(other[name] - one[name]) < 1e-5 * np.linalg.norm(one[name]), name
    assert np.mean(one["bank"] != one["first_bank"]) > 0.9


def free_ports(n):
    """Ports that nobody listens on."""
    listeners = [socket.create_server(("localhost", 0)) for _ in range(n)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Workers:
    """Processes that train a config together, with what each has printed."""

    def __init__(self, n_workers, config, *flags, started=None):
        addresses = [f"localhost:{port}" for port in free_ports(n_workers)]
        self.processes = []
        for index in started or reversed(range(n_workers)):  # the chief starts last
            environment = os.environ | {
                "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
            }
            command = [sys.executable, ROOT / "mat" / "train.py", config, *flags]
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
            self.processes.insert(0, subprocess.Popen(command, **options))

    def wait(self):
        """Exit status and output of each."""
        outputs = [process.communicate(timeout=300)[0] for process in self.processes]
        return [process.returncode for process in self.processes], outputs

    def wait_for_checkpoint(self, directory):
        """Until the run is in the middle of its first epoch."""
        while not list((directory / "checkpoints").glob("ckpt-[3-9].index")):
            assert all(process.poll() is None for process in self.processes), self.wait()
            time.sleep(0.01)


def test_ctrl_c_ends_a_worker_that_waits_for_the_others(tiny_config, tmp_path):
    tiny_config().to_yaml(tmp_path / "config.yaml")
    worker = Workers(2, tmp_path / "config.yaml", started=[1]).processes[0]
    assert any("waiting for the others" in line for line in iter(worker.stdout.readline, ""))
    time.sleep(2)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=30) in (-signal.SIGINT, 128 + signal.SIGINT)
    assert not (tmp_path / "results").exists()


def test_workers_give_the_run_of_one_device_and_go_on_after_one_was_killed(tiny_config, tmp_path):
    """Batches of eight, which three workers cannot share evenly, and thirteen validation images."""
    write_tiny_split(tmp_path / "data", "validation", np.arange(13) % 4)
    keys = {"n_epochs": 3, "n_stacks": 1, "initial_lr": 1e-3, "optimizer": UNTARGETED, "evaluation": EVALUATION}
    config = tiny_config(**keys, checkpoint_every_minutes=0.001, steps_per_call=2)
    path, results = tmp_path / "config.yaml", tmp_path / "results"
    config.to_yaml(path)

    killed = Workers(3, path, "--set", "unique_name=killed")
    killed.wait_for_checkpoint(results / "killed")
    killed.processes[1].kill()
    at = time.monotonic()
    statuses, outputs = killed.wait()
    assert statuses == [4, -signal.SIGKILL, 4], outputs
    assert time.monotonic() - at < 60
    for output in (outputs[0], outputs[2]):
        assert re.search(r"mat-train: worker \d of 3 .*: worker \d \(localhost:\d+\) does not answer any more.* --resume$", output.strip())
    shutil.copytree(results / "killed", results / "resumed_by_one")

    stopped = Workers(2, path, "--set", "unique_name=two")
    stopped.wait_for_checkpoint(results / "two")
    stopped.processes[1].terminate()
    statuses, outputs = stopped.wait()
    assert statuses == [128 + signal.SIGTERM] * 2, outputs
    assert "all of it is saved" in outputs[0]

    for n_workers, name, *flags in [
        (3, "killed", "--resume"),
        (3, "undisturbed"),
        (2, "two", "--resume", "--set", "robust_evaluation=quick"),
    ]:
        statuses, outputs = Workers(n_workers, path, "--set", f"unique_name={name}", *flags).wait()
        assert statuses == [0] * n_workers, outputs
        for output in outputs[1:]:  # the chief tells the rest; TensorFlow 2.18 has lines of its own
            assert len([line for line in output.splitlines() if not re.match(r"[IWE]\d{4} |WARNING: All log", line)]) == 3, output
    trainer_of(config.replace(unique_name="one", robust_evaluation="quick", steps_per_call=1)).fit()
    trainer_of(config.replace(unique_name="resumed_by_one"), resume=True).fit()

    one = outcome(results / "one")
    for name in ("undisturbed", "killed", "two", "resumed_by_one"):
        arrays = outcome(results / name)
        for key, value in arrays.items():
            assert np.linalg.norm(value - one[key]) < 1e-5 * max(np.linalg.norm(one[key]), 1.0), (name, key)
    for key, value in outcome(results / "killed").items():
        np.testing.assert_array_equal(value, outcome(results / "undisturbed")[key], key)
    examples = [next((results / name).glob("*_quick_evaluation/examples.csv")).read_text("utf-8") for name in ("one", "two")]
    assert examples[0] == examples[1]


def outcome(directory):
    """Weights, bank and logged metrics of a run."""
    arrays = dict(np.load(directory / "patches.npz"))
    with h5py.File(directory / "tiny_imagenet_weights_002.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    for tag in ("train/loss", "train/accuracy", "validation/accuracy"):
        arrays[tag] = np.array(list(read_values(directory / "events", tag).values()))
        assert arrays[tag].shape == (3,)
    return arrays
