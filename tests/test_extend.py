"""Runs that are continued beyond the epochs that they were begun with."""

import pathlib
import shutil

import numpy as np
import pytest

import mat
from mat.cli.errors import StoppedError, UserError
from mat.config import PatchTrainingConfig
from mat.models import create_model, load_weights
from mat.results.events import read_values, written_tags
from mat.results.schedule import describe_extensions, learning_rate
from mat.run import build_run
from mat.train import build_trainers, main, train_runs
from mat.trainer import Trainer
from tests.conftest import stop_at, trainer_of

PLAIN = {"n_patches": 0, "n_stacks": 1}  # a step that is quickly compiled, in two epochs of four steps


@pytest.fixture
def plain_config(tiny_config):
    """As `tiny_config`, for plain training."""
    return lambda **keys: tiny_config(**PLAIN | keys)


def config_of(directory):
    return PatchTrainingConfig.from_yaml(directory / "config.yaml", [f"unique_name={directory.name}"], resume=True)


def extended(config, n_epochs):
    """The trainer of a run that is continued to `n_epochs` epochs."""
    return Trainer(build_run(config, extend=n_epochs))


def rates(directory):
    return list(read_values(directory / "events", "learning_rate").values())


def cosine(n_epochs, *epochs, initial_lr=0.033):
    return [initial_lr / 2 * (1 + np.cos(np.pi * epoch / n_epochs)) for epoch in epochs]


def test_an_extended_run_goes_on_at_the_rate_of_the_longer_one_and_an_interruption_changes_nothing(plain_config, capsys):
    config = plain_config(unique_name="whole")
    trainer_of(config).fit()
    whole, broken = config.result_dir, config.result_dir.parent / "broken"
    shutil.copytree(whole, broken)
    before = (whole / "tiny_imagenet_weights_001.h5").read_bytes()
    capsys.readouterr()
    assert len(extended(config_of(whole), 6).fit().accuracies) == 4
    output = capsys.readouterr().out
    assert "from 2 to 6 epochs after epoch 2, where the learning rate goes from 0.0165 to 0.0248" in output
    assert "this is not the run of 6 epochs from the start" in output
    np.testing.assert_allclose(rates(whole), cosine(2, 0, 1) + cosine(6, 2, 3, 4, 5), rtol=1e-6)
    assert (whole / "config.yaml").read_text().startswith("# Extended from 2 to 6 epochs after epoch 2")
    assert config_of(whole).n_epochs == 6
    assert (whole / "tiny_imagenet_weights_001.h5").read_bytes() == before

    trainer = extended(config_of(broken), 6)
    stop_at(trainer, step=10)
    with pytest.raises(StoppedError, match=r"after epoch 3 of 6, step 2 of 4"):
        trainer.fit()
    capsys.readouterr()
    trainer_of(config_of(broken), resume=True).fit()
    assert "from 2 to 6 epochs after epoch 2" in capsys.readouterr().out
    for name in ("tiny_imagenet_weights_005.h5", "log.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert written_tags(whole / "events") == written_tags(broken / "events")
    assert mat.train(broken / "config.yaml", unique_name="broken", extend=6).accuracies == []  # the same again
    assert trainer_of(plain_config(unique_name="broken"), resume=True).run.config.n_epochs == 6  # by the config that the run was begun with


def test_the_best_accuracy_is_that_of_all_epochs(plain_config, capsys):
    config = plain_config(n_epochs=1)
    trainer_of(config).fit()
    trainer = extended(config_of(config.result_dir), 2)
    trainer.run.record.rows[0]["validation_accuracy"] = 1.0
    capsys.readouterr()
    trainer.fit()
    assert "best 100.0% after epoch 1" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_is_not_finished_keeps_the_rate_of_the_epoch_that_it_is_in(plain_config):
    config = plain_config()
    trainer = trainer_of(config)
    stop_at(trainer, step=6)
    with pytest.raises(StoppedError):
        trainer.fit()
    trainer = extended(config, 3)
    assert trainer.run.record.extensions == [[2, 2]]
    assert len(trainer.fit().accuracies) == 2
    np.testing.assert_allclose(rates(config.result_dir), cosine(2, 0, 1) + cosine(3, 2), rtol=1e-6)


def test_a_run_that_died_before_its_new_config_was_written_is_extended(plain_config, monkeypatch):
    config = plain_config(n_epochs=1)
    trainer_of(config).fit()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PatchTrainingConfig, "to_yaml", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        extended(config, 3).fit()
    assert config_of(config.result_dir).n_epochs == 1
    for run in (build_run(config_of(config.result_dir), resume=True), build_run(config, extend=3), build_run(config, extend=4)):
        assert run.config.n_epochs in (3, 4)
        assert run.record.extensions[0] == [1, 1]
    with pytest.raises(UserError, match="this run has n_epochs: 3, and --extend must be more. Received: 2"):
        build_run(config, extend=2)
    newest = max((config.result_dir / "checkpoints").glob("ckpt-*.data*"))
    newest.write_bytes(newest.read_bytes()[:1000])  # the one that knew of the extension
    assert build_run(config, extend=3).record.extensions == [[1, 1]]


def test_what_cannot_be_extended_is_refused(plain_config):
    config = plain_config(n_epochs=1)
    with pytest.raises(UserError, match="results/run: there is no run to extend to 2 epochs. Train it first, without --extend"):
        build_run(config, extend=2)
    assert not config.result_dir.exists()
    trainer_of(config).fit()
    with pytest.raises(UserError, match=r"has n_epochs: 1, and --extend must be more. Received: 1. To go on .*run/config.yaml --resume"):
        build_run(config, extend=1)
    with pytest.raises(UserError, match="this run has seed: 0, and the config has seed: 1"):
        build_run(plain_config(n_epochs=1, seed=1), extend=2)
    with pytest.raises(UserError, match=r"n_epochs: 1, and the config has n_epochs: 3.* or make it longer with --extend 3"):
        build_run(plain_config(n_epochs=3), resume=True)


@pytest.fixture
def compared_config(tiny_config, monkeypatch):
    """A config of one epoch that is compared with its plain baseline, without the evaluations."""
    monkeypatch.setattr("mat.trainer.measure_robustness", lambda *_, **__: {"headline": {"robust": {"accuracy": 0.5}}})
    monkeypatch.setattr("mat.trainer.headline_text", lambda report: "50 %")
    monkeypatch.setattr("mat.train.print_comparison", lambda reports: None)
    keys = {"n_stacks": 1, "n_patches": 2, "n_epochs": 1, "robust_evaluation": "quick", "plain_baseline": True}
    return tiny_config(**keys | {"optimizer": {"n_iterations": 1}})


def test_a_plain_baseline_that_is_missing_can_be_trained_before_it_is_extended(compared_config):
    alone = compared_config.replace(plain_baseline=False, unique_name="group/run")
    train_runs(alone)
    train_runs(alone, extend=2)
    with pytest.raises(UserError, match=r"results/group/run_plain has no run to extend as .*results/group/run was") as refusal:
        build_trainers(alone.replace(plain_baseline=True), resume=True, extend=None)
    assert "with n_patches: 0, plain_baseline: false, n_epochs: 1 and unique_name: group/run_plain" in str(refusal.value)
    assert "--extend" not in str(refusal.value)
    train_runs(alone.replace(n_patches=0, n_epochs=1, unique_name="group/run_plain"))
    trainers = build_trainers(alone.replace(plain_baseline=True), resume=True, extend=None)
    assert [trainer.run.record.extensions for trainer in trainers] == [[[1, 1]]] * 2


def test_a_plain_baseline_is_extended_with_its_run_or_not_at_all(compared_config):
    config = compared_config
    train_runs(config)
    extended_run, _ = build_trainers(config, resume=True, extend=2)
    assert len(extended_run.fit().accuracies) == 1  # then the process dies
    results = train_runs(config_of(config.result_dir), resume=True)
    assert [len(result.accuracies) for result in results] == [0, 1]
    assert [trainer.run.record.extensions for trainer in build_trainers(config, resume=True, extend=3)] == [[[1, 1], [2, 2]]] * 2
    extended(config.without_patches(), 3).fit()
    with pytest.raises(UserError, match=r"results/run would be extended after another epoch than .*results/run_plain\. Finish both"):
        build_trainers(config, resume=True, extend=4)


def test_an_own_network_is_saved_as_it_is_after_the_last_epoch(tiny_config):
    config = tiny_config(n_patches=0, n_epochs=1, network="tests.networks:small")
    trainer_of(config).fit()
    path = config.result_dir / "network.keras"
    written_at = path.stat().st_mtime_ns
    trainer_of(config, resume=True).fit()
    assert path.stat().st_mtime_ns == written_at  # a run that starts from this file knows it by its bytes
    trainer = extended(config, 2)
    save = trainer.run.results.checkpoints.save

    def save_and_die(*arguments, **keys):
        save(*arguments, **keys)
        raise KeyboardInterrupt

    trainer.run.results.checkpoints.save = save_and_die
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert len(trainer_of(config, resume=True).fit().accuracies) == 1
    model = create_model(config.replace(network=str(path)))
    same = create_model(config)
    load_weights(same, config.result_dir / "network_001.weights.h5")
    for one, other in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_of_the_first_version_is_extended(tmp_path, capsys):
    shutil.copytree(pathlib.Path(__file__).parent / "fixtures" / "0.1.0", tmp_path / "copy")
    places = [f"base_result_dir={tmp_path / 'copy'}", f"data_dir={tmp_path / 'copy' / 'data'}"]
    flags = [flag for place in places for flag in ("--set", place)]
    assert main([str(tmp_path / "copy" / "run" / "config.yaml"), "--extend", "3", *flags]) == 0
    assert "from 2 to 3 epochs after epoch 2" in capsys.readouterr().out
    assert len((tmp_path / "copy" / "run" / "log.csv").read_text().splitlines()) == 4
    np.testing.assert_allclose(rates(tmp_path / "copy" / "run")[-2:], cosine(2, 1) + cosine(3, 2), rtol=1e-6)


def test_the_schedule_of_a_run_that_was_extended_twice():
    extensions = [[2, 3], [4, 4]]
    found = [learning_rate(epoch, n_epochs=8, initial_lr=0.1, extensions=extensions) for epoch in range(8)]
    np.testing.assert_allclose(
        found, cosine(3, 0, 1, initial_lr=0.1) + cosine(4, 2, 3, initial_lr=0.1) + cosine(8, 4, 5, 6, 7, initial_lr=0.1)
    )
    told = describe_extensions(n_epochs=8, initial_lr=0.1, extensions=extensions)
    assert told.startswith(
        "from 3 to 4 epochs after epoch 2, where the learning rate goes from 0.075 to 0.05; from 4 to 8 epochs after epoch 4"
    )
    assert describe_extensions(n_epochs=8, initial_lr=0.1, extensions=[]) == ""


def test_of_extensions_at_one_epoch_the_schedules_that_were_trained_are_told():
    told = describe_extensions(n_epochs=8, initial_lr=0.1, extensions=[[0, 2], [2, 3], [2, 5]])
    assert told.startswith("from 3 to 8 epochs after epoch 2, where the learning rate goes from 0.075 to 0.0854; this is not")
