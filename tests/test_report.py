"""What the report says of findings: its checklist and its intervals."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from mat.config import EvaluationConfig
from mat.robustness.fit import Findings, Outcome
from mat.robustness.intervals import accuracy_interval, images_needed
from mat.robustness.plan import plan_grid
from mat.robustness.report import checklist, make_report, report_markdown, robust_words


def findings(correct, *, controls=(), gradient_free=(), transfer=(), iterations=(), patch_sizes=(), vanishing=0.0, positions=None):
    """Findings on 100 images of class 0 of which so many are right under each patch; the curves are (value, number) pairs."""
    restart = plan_grid(EvaluationConfig(), n_classes=2, patch_shape=(4, 4, 3), seed=0, has_bank=False)[0]

    def outcome(n_correct, **changes):
        predictions = (np.arange(100) >= n_correct).astype(np.int64)
        made = dataclasses.replace(restart, repeat=n_correct, **changes)
        return Outcome(made.name, np.zeros((4, 4, 3)), predictions, np.ones(3), made)

    return Findings(
        records=np.arange(100),
        labels=np.zeros(100, np.int64),
        images=tf.zeros([100, 8, 8, 3]),
        offsets=np.zeros((100, 2), np.int32),
        clean=np.zeros(100, np.int64),
        controls=[outcome(n) for n in controls],
        grid=[outcome(n) for n in correct],
        gradient_free=[outcome(n) for n in gradient_free],
        transfer=[outcome(n) for n in transfer],
        iterations=[outcome(n, n_iterations=value) for value, n in iterations],
        patch_sizes=[outcome(n, patch_shape=(value, value, 3)) for value, n in patch_sizes],
        vanishing={"untargeted": vanishing, "targeted": 0.0},
        position_gradients={(0, 0): 1.2, (4, 4): 0.8} if positions is None else positions,
        cost=1,
    )


GOOD = {
    "correct": [30, 40],
    "controls": [90, 80],
    "gradient_free": [50],
    "transfer": [60],
    "iterations": [(50, 35), (100, 30), (200, 29)],
    "patch_sizes": [(2, 60), (4, 30), (6, 10)],
}


def statuses(protocol=None, **changes):
    report = make_report(
        findings(**GOOD | changes), protocol=protocol or EvaluationConfig(interval_width=0.2), subject={}, class_names=["a", "b"]
    )
    return [item["status"] for item in report["checklist"]], report


def test_a_sound_evaluation_passes_every_check():
    found, report = statuses()
    assert found == ["passed"] * 7
    assert report["headline"]["robust"]["n_correct"] == 30
    assert report["grid_summary"]["mean"] == 0.35
    assert report["headline"]["every_image_under_its_worst_patch"]["n_correct"] == 30


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        (0, {"vanishing": 0.02}, "2.0% of the images"),
        (0, {"positions": {(0, 0): 1.75, (4, 4): 0.25}}, "at offset (4, 4), it is 0.25 of the mean over all positions"),
        (0, {"positions": {}}, "0.0% of the images"),
        (1, {"gradient_free": [50, 30]}, "masked gradients"),
        (2, {"transfer": [29]}, "masked gradients or too weak"),
        (3, {"controls": [90, 30]}, "attacks nothing"),
        (4, {"iterations": [(50, 35), (100, 30), (200, 27)]}, "30.0% after 100 iterations, 27.0% after 200"),
        (4, {"correct": [32, 40], "iterations": [(100, 30), (200, 29)]}, "32.0% in the headline, 29.0% after 200"),
        (5, {"patch_sizes": [(2, 25), (4, 30)]}, "2x2: 25.0%, 4x4: 30.0%"),
        (6, {"protocol": EvaluationConfig(interval_width=0.05)}, "about 1,296 are needed"),
    ],
)
def test_each_sign_of_a_false_evaluation_raises_its_warning(place, changes, words):
    found, report = statuses(**changes)
    assert [i for i, status in enumerate(found) if status == "warning"] == [place]
    assert words in report["checklist"][place]["message"]


def test_a_network_that_is_always_wrong_is_told_so_without_false_warnings():
    found, report = statuses(correct=[0, 5], gradient_free=[0], controls=[0], transfer=[0], iterations=(), patch_sizes=())
    assert found == ["passed", "passed", "passed", "passed", "not checked", "not checked", "passed"]
    narrow, _ = statuses(EvaluationConfig(interval_width=0.001), correct=[0, 5])
    assert narrow[-1] == "warning"
    assert report["headline"]["robust"]["low"] == 0


@pytest.mark.parametrize(
    ("changes", "attack", "n_correct"),
    [
        ({}, "white_box", 30),
        ({"gradient_free": [50, 20]}, "gradient_free", 20),
        ({"transfer": [29]}, "transfer", 29),
        ({"controls": [90, 10]}, "control", 10),
        ({"gradient_free": [30], "controls": [30]}, "white_box", 30),  # no stronger than the grid's
        ({"iterations": [(50, 35), (100, 30), (200, 1)], "patch_sizes": [(2, 60), (6, 0)]}, "white_box", 30),  # other efforts, other sizes
    ],
)
def test_the_headline_is_the_worst_of_everything_that_was_tried(changes, attack, n_correct):
    _, report = statuses(**changes)
    robust = report["headline"]["robust"]
    assert (robust["attack"], robust["n_correct"], robust["accuracy"]) == (attack, n_correct, n_correct / 100)
    tried = [row for name in ("grid", "gradient_free", "transfer", "controls") for row in report[name]]
    assert robust["accuracy"] == min(row["accuracy"] for row in tried)
    assert robust["name"] in [row["name"] for row in tried if row["accuracy"] == robust["accuracy"]]
    assert report["headline"]["n_patches"] == len(tried)
    assert report["headline"]["every_image_under_its_worst_patch"]["n_correct"] == n_correct  # the same images are hard for all
    words = f"{n_correct}.0% ({robust['low']:.1%} to {robust['high']:.1%}) under the worst of {len(tried)} universal patches"
    assert robust_words(report) == f"{words} ({attack.replace('_', '-')})"
    assert f"({attack.replace('_', '-')})" in report_markdown(report | {"subject": {"protocol": {}}}).decode()


def test_changes_of_two_points_pass_whatever_their_rounding():
    for n_correct in range(2, 100):  # of which 0.275 - 0.255 and others are a little more than 0.02
        found, _ = statuses(
            correct=[n_correct], iterations=[(100, n_correct), (200, n_correct - 2)], controls=(), gradient_free=(), transfer=()
        )
        assert found[4] == "passed"


def test_every_image_counts_under_its_own_worst_patch():
    found = findings([60, 70])
    odd = found.grid[0]._replace(predictions=(np.arange(100) < 20).astype(np.int64))  # other images than the grid's
    report = make_report(found._replace(controls=[odd]), protocol=EvaluationConfig(), subject={}, class_names=["a", "b"])
    assert report["headline"]["robust"]["n_correct"] == 60
    assert report["headline"]["every_image_under_its_worst_patch"]["n_correct"] == 40


def test_what_was_not_measured_is_not_called_passed():
    found, _ = statuses(gradient_free=(), transfer=(), iterations=(), patch_sizes=())
    assert found == ["passed", "not checked", "not checked", "passed", "not checked", "not checked", "passed"]
    assert checklist(statuses()[1], EvaluationConfig(interval_width=0.2))[0]["status"] == "passed"


@pytest.mark.parametrize(("n_correct", "n_images"), [(5, 10), (1, 10), (281, 1000), (9_700, 10_000)])
def test_intervals_hold_95_percent_of_the_posterior(n_correct, n_images):
    low, high = accuracy_interval(n_correct, n_images)
    x = np.linspace(0, 1, 2_000_001)[1:-1]
    log_density = (n_correct - 0.5) * np.log(x) + (n_images - n_correct - 0.5) * np.log1p(-x)
    density = np.exp(log_density - log_density.max())
    cumulative = np.cumsum(density) / density.sum()
    np.testing.assert_allclose(np.interp([low, high], x, cumulative), [0.025, 0.975], atol=1e-3)
    assert low < n_correct / n_images < high


def test_intervals_reach_the_ends_and_narrow_with_images():
    low, high = accuracy_interval(np.array([0, 10]), 10)
    assert (low[0], high[1]) == (0, 1)
    assert 0.2 < high[0] < 0.25
    np.testing.assert_allclose(low[1], 1 - high[0])
    for accuracy in (0.1, 0.5, 0.9):
        n = images_needed(round(1000 * accuracy), 1000, 0.05)
        low, high = accuracy_interval(round(accuracy * n), n)
        assert abs((high - low) - 0.05) < 0.002
