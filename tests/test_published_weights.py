"""The networks in weights/: their files are whole, load, and have the accuracies that are stated."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

import mat
from mat.config import PatchTrainingConfig
from mat.models import create_model, load_weights
from mat.robustness.intervals import interval_text

WEIGHTS = pathlib.Path(__file__).parents[1] / "weights"
DATA = WEIGHTS.parent / "data" / "tiny-imagenet-10"
NETWORKS = sorted(path.name for path in WEIGHTS.glob("tiny_imagenet_10_*"))
CLASSES = ["lemon", "espresso", "monarch", "school bus", "pizza", "goldfish", "king penguin", "beacon", "jellyfish", "gondola"]


def report_of(name):
    return json.loads((WEIGHTS / name / "report.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NETWORKS)
def test_files_are_those_that_were_published(name):
    lines = [line.split() for line in (WEIGHTS / name / "SHA256SUMS").read_text().splitlines()]
    assert {file for _, file in lines} == {path.name for path in (WEIGHTS / name).iterdir() if path.is_file()} - {"SHA256SUMS"}
    for digest, file in lines:
        assert hashlib.sha256((WEIGHTS / name / file).read_bytes()).hexdigest() == digest, file


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_load(name):
    config = PatchTrainingConfig.from_yaml(WEIGHTS / name / "config.yaml")
    model = create_model(config)
    load_weights(model, WEIGHTS / name / "tiny_imagenet_weights_029.h5")
    loaded = mat.load(WEIGHTS / name)
    assert loaded.class_names == CLASSES
    assert [one.shape for one in loaded.get_weights()] == [one.shape for one in model.get_weights()]
    assert all(np.array_equal(one, other) for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stated_accuracies_are_those_of_the_report(name):
    headline, lines = report_of(name)["headline"], (WEIGHTS / "README.md").read_text("utf-8").splitlines()
    row = next(line for line in lines if line.startswith(f"| [`{name}/`]"))
    assert row.endswith(f" {interval_text(headline['clean'])} | {interval_text(headline['robust'])} |")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs ten classes of Tiny ImageNet in {DATA}")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_stated_accuracies_come_out_again(name):
    directory = WEIGHTS / name
    keys = {"seed": 0, "precision": "float32", "iterations": 1, "n_targets": 0, "n_controls": 1}  # the seed of the protocol, not of the run
    again = mat.evaluate(directory, DATA, quick=True, patches=[directory / "universal_patches.npz"], **keys)["headline"]
    stated = report_of(name)["headline"]
    assert [again[kind]["n_correct"] for kind in ("clean", "robust")] == [stated[kind]["n_correct"] for kind in ("clean", "robust")]
