"""TensorBoard events: each value once, whatever a crash left."""

import numpy as np
import pytest

from mat.data.records import framed_payloads
from mat.results.events import Events, written_tags


def write(events, epochs):
    for epoch in epochs:
        events.write(epoch, {"loss": 0.5, "accuracy": 0.1}, {"patches": np.zeros([4, 4, 3], np.uint8)})


EVERYTHING = sorted((tag, epoch) for tag in ("loss", "accuracy", "patches") for epoch in range(4))


def test_epochs_that_are_made_again_are_written_once(tmp_path):
    write(Events(tmp_path, n_epochs=0), range(3))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])  # cut off in the last event
    write(Events(tmp_path, n_epochs=2), range(2, 4))
    assert written_tags(tmp_path) == EVERYTHING


def test_what_is_written_already_is_not_written_again(tmp_path):
    write(Events(tmp_path, n_epochs=0), range(4))
    content = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(Events(tmp_path, n_epochs=4), range(4))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == content
    assert written_tags(tmp_path) == EVERYTHING


@pytest.mark.parametrize("damage", [lambda payload: b"\xff" * len(payload), lambda payload: payload[:-1] + bytes([payload[-1] ^ 1])])
def test_what_follows_a_damaged_event_goes_and_can_be_written_again(tmp_path, damage):
    write(Events(tmp_path, n_epochs=0), range(4))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    start, stop = framed_payloads(content)[0][-3]  # of the last epoch
    path.write_bytes(content[:start] + damage(content[start:stop]) + content[stop:])
    events = Events(tmp_path, n_epochs=4)
    assert set(written_tags(tmp_path)) < set(EVERYTHING)
    write(events, range(4))
    assert written_tags(tmp_path) == EVERYTHING


def test_other_files_stay_and_half_written_ones_go(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "events.out.tfevents.1.part").write_text("half")
    Events(tmp_path, n_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
