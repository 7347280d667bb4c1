"""Dry runs: what they tell, and that they write nothing."""

import pathlib
import re
import tempfile

import numpy as np
import pytest
import yaml

from mat.cli.errors import StoppedError
from mat.config import PatchTrainingConfig
from mat.train import main
from tests.conftest import TINY, stop_at, trainer_of, write_tiny_split

PLAIN = {"n_patches": 0, "n_stacks": 1}  # a step that is quickly compiled


@pytest.fixture
def dry_run(tmp_path, tiny_data, capsys, monkeypatch):
    """A function from config keys to (exit status, standard error, standard output) of `mat-train --dry-run`, which must write nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def command(*arguments, **keys):
        config = {**TINY, "data_dir": str(tiny_data), "base_result_dir": "results", **keys}
        pathlib.Path("config.yaml").write_text(yaml.safe_dump(config))
        before, _ = tree(tmp_path), capsys.readouterr()
        status = main(["config.yaml", "--dry-run", *arguments])
        assert tree(tmp_path) == before
        return status, *reversed(capsys.readouterr())

    return command


def tree(directory):
    """Size and time of every file and directory below a directory, but for temporary ones, which TensorFlow has too."""
    paths = [path for path in directory.rglob("*") if "temporary" not in path.parts]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def test_a_dry_run_tells_the_plan_and_what_both_networks_take(dry_run, capsys):
    keys = {"n_epochs": 1, "n_stacks": 1, "n_patch_trials": 1, "optimizer": {"n_iterations": 0}, "robust_evaluation": "quick"}
    keys |= {"plain_baseline": True, "evaluation": {"iterations": 1, "n_targets": 0, "n_controls": 1}}
    status, errors, output = dry_run(**keys)
    assert (status, errors) == (0, "")
    assert "dry run of training into results/run" in output
    for words in ("32 training and 12 validation images", "6 of 6x6", "none: plain training", "MB to write"):
        assert words in output
    assert len(re.findall(r"steps +\d+\.\d{3} s each, [\d,]+ images/s; 4 are left", output)) == 2
    assert len(re.findall(r"validation +[\d.e-]+ s each; 1 are left", output)) == 2
    assert len(re.findall(r"memory +[\d,]+ MB of this process", output)) == 2
    assert output.endswith("Nothing was written\n")
    costs = re.findall(r"quick: ([\d,]+ forward passes)", output)
    assert main(["config.yaml"]) == 0
    assert re.findall(r"cost +([\d,]+ forward passes)", capsys.readouterr().out) == costs
    status, errors, _ = dry_run(**keys)
    assert status == 2
    assert "results/run: this result directory exists already" in errors
    status, errors, output = dry_run("--resume", **keys)
    assert (status, errors) == (0, "")
    assert output.count("this run is finished") == 2
    assert "evaluation" not in output
    pathlib.Path("results/run_plain/tiny_imagenet_weights_000_quick_evaluation/report.json").unlink()
    status, errors, output = dry_run("--resume", **keys)
    assert (status, errors) == (0, "")
    assert re.findall(r"evaluation +quick: ([\d,]+ forward passes)", output) == costs[1:]


def test_a_dry_run_of_an_interrupted_run_leaves_its_state(dry_run, tiny_config):
    config = tiny_config(**PLAIN)
    trainer = trainer_of(config)
    stop_at(trainer, step=6)
    with pytest.raises(StoppedError):
        trainer.fit()
    (config.result_dir / "checkpoints" / "lock").unlink()  # as in a copy of the directory
    status, errors, output = dry_run("--resume", **PLAIN)
    assert (status, errors) == (0, "")
    assert "resuming after epoch 2 of 2, step 2 of 4" in output
    assert "; 2 are left" in output
    status, errors, output = dry_run("--extend", "3", **PLAIN)
    assert (status, errors) == (0, "")
    assert "from 2 to 3 epochs after epoch 2" in output
    assert "; 6 are left" in output
    resumed = trainer_of(PatchTrainingConfig.from_yaml(config.result_dir / "config.yaml"), resume=True)
    assert (resumed.run.config.n_epochs, int(resumed.run.step.step)) == (2, 6)


def test_the_demo_is_made_elsewhere_and_faults_are_told(dry_run, tiny_data):
    demo = PLAIN | {"dataset": "demo", "data_dir": "new/demo", "image_size": 32, "n_classes": 10, "batch_size": 32}
    status, errors, output = dry_run(**demo)
    assert (status, errors) == (0, "")
    assert "new/demo: has no data set yet; the dry run makes it in a temporary directory" in output
    assert "4,000 training and 1,000 validation images" in output
    assert not any(path.is_dir() for path in pathlib.Path("temporary").iterdir())
    status, errors, _ = dry_run(**demo | {"data_dir": "config.yaml/demo"})
    assert status == 2
    assert "config.yaml/demo: the directory cannot be made" in errors
    status, errors, output = dry_run(**PLAIN, initial_lr=1e38, normalization="none", weight_decay=1000.0)
    assert status == 3
    assert "became NaN or infinite at step 2 (epoch 1, step 2), which was not made; in this dry run nothing is saved" in errors
    assert "are left" not in output
    write_tiny_split(tiny_data, "train", np.arange(4))
    status, errors, _ = dry_run(**PLAIN)
    assert status == 2
    assert "4 training images do not fill one batch" in errors
