"""What all tests share: golden values of the original, its small network, and tiny data."""

import functools
import http.server
import os
import pathlib
import signal
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf

from mat.config import PatchTrainingConfig
from mat.data.demo import draw_image
from mat.data.records import make_example, record_path, write_records
from mat.models import create_model, load_weights
from mat.run import build_run
from mat.trainer import Trainer

GOLDEN = pathlib.Path(__file__).parent / "golden"

SMALL = {"image_size": 16, "n_classes": 5, "depth": 8, "width": 1, "n_stacks": 2, "patch_shape": (4, 4, 3)}  # a network

TINY = {  # a config that trains in seconds, on `tiny_data`
    "image_size": 16,
    "n_classes": 4,
    "depth": 8,
    "width": 1,
    "n_stacks": 2,
    "batch_size": 8,
    "n_epochs": 2,
    "n_patches": 6,
    "patch_shape": [6, 6, 3],
    "n_patch_trials": 2,
    "unique_name": "run",
    "robust_evaluation": "none",
}


def trainer_of(config, *, resume=False):
    """The trainer of a run that is built from a config."""
    return Trainer(build_run(config, resume=resume))


def golden(name):
    """The arrays of `tests/golden/{name}.npz`, float32 images made from their bytes."""
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    if "images_u8" in arrays:
        arrays["images"] = arrays["images_u8"].astype(np.float32) / 255
    return arrays


def decode_offsets(randomness, n_positions=40):
    """The (row, column) that the original reads off a random integer, int32 [..., 2]."""
    return np.stack([randomness % n_positions, randomness // n_positions % n_positions], axis=-1).astype(np.int32)


def load_golden_model():
    """The original's network at width 1 with its golden weights."""
    model = create_model(PatchTrainingConfig(width=1))
    load_weights(model, GOLDEN / "original_w1.h5")
    return model


@pytest.fixture(scope="session")
def undefended(tmp_path_factory):
    """(config, weights file) of a network trained without patches on the demo's patterns, until it knows most of them."""
    directory = tmp_path_factory.mktemp("undefended")
    rng = np.random.default_rng(0)
    for split, n_images in {"train": 960, "validation": 200}.items():
        labels = np.arange(n_images) % 10
        jpegs = [tf.io.encode_jpeg(draw_image(label, rng), quality=95).numpy() for label in labels]
        records = [make_example(jpeg, "n0", int(label), (0, 0, 31, 31)) for jpeg, label in zip(jpegs, labels, strict=True)]
        write_records(record_path(directory, split), records)
    config = PatchTrainingConfig(
        **TINY
        | {"image_size": 32, "n_classes": 10, "n_patches": 0, "n_epochs": 8, "batch_size": 32, "patch_shape": [12, 12, 3], "n_stacks": 3},
        data_dir=str(directory),
        base_result_dir=str(directory),
    )
    trainer_of(config).fit()
    return config, config.result_dir / "tiny_imagenet_weights_007.h5"


@pytest.fixture
def golden_model():
    """The original's network at width 1, loaded anew for each test, which may change it."""
    return load_golden_model()


def write_tiny_split(data_dir, split, labels, **example):
    """Write 16x16 images of `labels` as a split; `example` replaces arguments of the first record."""
    rng = np.random.default_rng(len(labels))
    records = []
    for i, label in enumerate(labels):
        arguments = {"jpeg": tf.io.encode_jpeg(draw_image(int(label) % 10, rng)[:16, :16]).numpy(), "wnid": "n0", "label": int(label)}
        records.append(make_example(**arguments | {"box": (0, 0, 15, 15)} | (example if i == 0 else {})))
    write_records(record_path(data_dir, split), records)


@pytest.fixture
def tiny_data(tmp_path):
    """A directory with 32 training and 12 validation images of four classes."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    write_tiny_split(data_dir, "train", np.arange(32) % 4)
    write_tiny_split(data_dir, "validation", np.arange(12) % 4)
    return data_dir


@pytest.fixture
def tiny_config(tmp_path, tiny_data):
    """A function from replaced keys to a `PatchTrainingConfig` on `tiny_data`, with results in `tmp_path/results`."""

    def make(**keys):
        return PatchTrainingConfig(**TINY | {"data_dir": str(tiny_data), "base_result_dir": str(tmp_path / "results")} | keys)

    return make


def stop_at(trainer, *, step):
    """Let this process get a SIGTERM in a step of a trainer's run, counted from 1."""
    train_on_batch = trainer.run.step.train_on_batch

    def train(images, labels):
        if int(trainer.run.step.step) == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_on_batch(images, labels)

    trainer.run.step.train_on_batch = train


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, `state["content"]`.

    `state["status"]` is its answer to everything, `state["breaks_after"]` the bytes after which it breaks off.
    """

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        content = self.state["content"]
        self.state["n_requests"] += 1
        if "status" in self.state:
            self.send_error(self.state["status"])
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.state.get("breaks_after")])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """(address, state) of a local HTTP server that serves `state["content"]`."""
    state = {"content": bytes(range(256)) * 4000, "n_requests": 0}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state)) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/file.zip", state
        httpd.shutdown()
