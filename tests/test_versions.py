"""What earlier versions wrote is read: config, weights, bank, checkpoint. `tests/make_fixture.py` wrote the files."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.models import create_model, load_weights
from mat.robustness.inputs import read_bank
from tests.conftest import trainer_of
from tests.make_fixture import state_of, sums

FIXTURES = sorted((pathlib.Path(__file__).parent / "fixtures").iterdir())


@pytest.fixture(params=FIXTURES, ids=[path.name for path in FIXTURES])
def earlier(request, tmp_path):
    """(config, expected sums) of a copy of a version's run."""
    shutil.copytree(request.param, tmp_path / "copy")
    places = [f"base_result_dir={tmp_path / 'copy'}", f"data_dir={tmp_path / 'copy' / 'data'}"]
    config = PatchTrainingConfig.from_yaml(tmp_path / "copy" / "run" / "config.yaml", places, resume=True)
    return config, json.loads((tmp_path / "copy" / "expected.json").read_text())


def test_configs_weights_and_banks_of_earlier_versions_are_read(earlier):
    config, expected = earlier
    assert (config.n_epochs, config.n_patches, config.optimizer.n_iterations, config.patch_shape) == (2, 6, 1, (6, 6, 3))
    model = create_model(config)
    load_weights(model, config.result_dir / "tiny_imagenet_weights_000.h5")
    patches, targets = read_bank(config.result_dir / "patches.npz", config.n_classes)
    assert sums({"weights": model.get_weights(), "patches": [patches]}) == pytest.approx(expected["epoch"], rel=1e-6)
    np.testing.assert_array_equal(targets, [0, 1, 2, 3, 0, 1])


def test_checkpoints_of_earlier_versions_are_resumed(earlier):
    config, expected = earlier
    log = (config.result_dir / "log.csv").read_text()
    trainer = trainer_of(config, resume=True)
    assert (trainer.run.epoch, int(trainer.run.step.step)) == (1, 6)
    assert sums(state_of(trainer)) == pytest.approx(expected["checkpoint"], rel=1e-6)
    assert len(trainer.fit().accuracies) == 1
    lines = (config.result_dir / "log.csv").read_text().splitlines()
    assert lines[:-1] == log.splitlines()
    assert lines[-1].startswith("1.000;")


def test_runs_whose_network_computes_something_else_now_are_refused(tiny_config, monkeypatch, capsys):
    """Version 0.1 cropped last feature maps of 9 to 15, whose weights have the shapes of today's."""
    monkeypatch.setattr("mat.results.checkpoints.__version__", "0.1.0")
    cropped = tiny_config(n_epochs=1, image_size=18, unique_name="cropped")
    whole = tiny_config(n_epochs=1, unique_name="whole")
    for config in (cropped, whole):
        trainer_of(config).fit()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"cropped: its run is of version 0.1.0, which left out a part of images of image_size: 18"):
        trainer_of(cropped, resume=True)
    monkeypatch.setattr("mat.results.resume.tensorfloat32_is_fast", lambda: True)
    trainer_of(whole, resume=True)
    assert "version 0.1.0, whose float32 was TensorFloat-32" in capsys.readouterr().out


def test_runs_on_images_that_are_resized_in_another_way_now_are_refused(tiny_config, monkeypatch):
    """Before 0.4, images that were larger than image_size were shrunk without smoothing."""
    monkeypatch.setattr("mat.results.checkpoints.__version__", "0.3.0")
    keys = {"n_epochs": 1, "n_stacks": 1, "patch_shape": [4, 4, 3]}
    shrunk, whole = (tiny_config(**keys, image_size=size, unique_name=f"of_{size}") for size in (8, 16))
    for config in (shrunk, whole):
        trainer_of(config).fit()
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"of_8: its run is of version 0.3.0, which squeezed images .* Train anew under another unique_name"
    ):
        trainer_of(shrunk, resume=True)
    assert trainer_of(whole, resume=True).run.epoch == 1
