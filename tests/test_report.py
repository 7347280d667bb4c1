"""What the report says of scores: its headline, its checklist and its intervals."""

import dataclasses

import numpy as np
import pytest

from mat.config import EvaluationConfig
from mat.robustness.checklist import checklist
from mat.robustness.intervals import accuracy_interval, images_needed
from mat.robustness.plan import PatchSpec
from mat.robustness.report import headline_text, make_report
from mat.robustness.score import ScoredPatch, Scores
from mat.robustness.tables import report_markdown

GOOD = {  # how many of 100 images are right under each patch; the curves are (value, number) pairs
    "grid": [30, 40],
    "controls": [90, 80],
    "gradient_free": [50],
    "transfer": [60],
    "given": [70],
    "iterations": [(50, 35), (100, 30), (200, 29)],
    "patch_sizes": [(2, 60), (4, 30), (6, 10)],
}
NOTHING_ELSE = {"gradient_free": [], "transfer": [], "given": [], "iterations": [], "patch_sizes": []}


def scored(n_correct, **changes):
    """A patch under which so many of 100 images of class 0 are right."""
    spec = dataclasses.replace(PatchSpec("white_box", None, "random", 0.1, n_correct, 100, (4, 4, 3)), **changes)
    return ScoredPatch(spec.name, np.zeros((4, 4, 3)), np.ones(3), spec, predictions=np.int64(np.arange(100) >= n_correct))


def scores(vanishing=0.0, positions=None, **changes):
    """Scores on 100 images of class 0, with `GOOD` or the changes of it."""
    numbers = GOOD | changes
    return Scores(
        **dict.fromkeys(("labels", "clean"), np.zeros(100, np.int64)),
        **dict.fromkeys(("records", "images", "offsets"), None),  # the report does not need them
        **{name: [scored(n) for n in numbers[name]] for name in ("grid", "controls", "gradient_free", "transfer", "given")},
        iterations=[scored(n, n_iterations=value) for value, n in numbers["iterations"]],
        patch_sizes=[scored(n, patch_shape=(value, value, 3)) for value, n in numbers["patch_sizes"]],
        vanishing={"untargeted": vanishing, "targeted": 0.0},
        position_gradients={(0, 0): 1.2, (4, 4): 0.8} if positions is None else positions,
        cost=1,
    )


def report_of(made, width=0.2):
    """The report of scores, and the statuses of its checks."""
    protocol = EvaluationConfig(interval_width=width)
    report = make_report(made, protocol=protocol, subject={"protocol": {}}, class_names=["a", "b"])
    assert report["checklist"] == checklist(report, protocol)
    return report, [item["status"] for item in report["checklist"]]


@pytest.mark.parametrize("changes", [{}, {"grid": [10, 50], "iterations": [(100, 10), (200, 8)]}])  # 0.1 - 0.08 > 0.02
def test_a_sound_evaluation_passes_every_check(changes):
    report, statuses = report_of(scores(**changes))
    assert statuses == ["passed"] * 8
    lowest, highest = (n / 100 for n in (GOOD | changes)["grid"])
    summary = {"mean": (lowest + highest) / 2, "standard_deviation": (highest - lowest) / 2, "highest": highest, "lowest": lowest}
    assert report["grid_summary"] == pytest.approx({"n_patches": 2} | summary)


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        (0, {"vanishing": 0.02}, "2.0% of the images"),
        (0, {"positions": {(0, 0): 1.75, (4, 4): 0.25}}, "at offset (4, 4), it is 0.25 of the mean over all positions"),
        (0, {"positions": {}}, "0.0% of the images"),
        (1, {"gradient_free": [50, 30]}, "masked gradients"),
        (2, {"transfer": [29]}, "masked gradients or too weak"),
        (3, {"given": [70, 30]}, "masked gradients or too weak"),
        (4, {"controls": [90, 30]}, "attacks nothing"),
        (5, {"iterations": [(50, 35), (100, 30), (200, 27)]}, "30.0% after 100 iterations, 27.0% after 200"),
        (5, {"grid": [32, 40], "iterations": [(100, 30), (200, 29)]}, "32.0% in the headline, 29.0% after 200"),
        (6, {"patch_sizes": [(2, 25), (4, 30)]}, "2x2: 25.0%, 4x4: 30.0%"),
        (7, {"width": 0.05}, "about 1,296 are needed"),
    ],
)
def test_each_sign_of_a_false_evaluation_raises_its_warning(place, changes, words):
    report, statuses = report_of(scores(**{k: v for k, v in changes.items() if k != "width"}), changes.get("width", 0.2))
    assert [i for i, status in enumerate(statuses) if status == "warning"] == [place]
    assert words in report["checklist"][place]["message"]


@pytest.mark.parametrize(
    ("changes", "width", "last"),
    [
        ({}, 0.2, "passed"),
        ({"grid": [0, 5], "controls": [0]}, 0.2, "passed"),  # where nothing is right, nothing can be stronger
        ({"grid": [0, 5]}, 0.001, "warning"),
    ],
)
def test_what_was_not_measured_is_not_called_passed(changes, width, last):
    _, statuses = report_of(scores(**NOTHING_ELSE | changes), width)
    assert statuses == ["passed", "not checked", "not checked", "not checked", "passed", "not checked", "not checked", last]


@pytest.mark.parametrize(
    ("changes", "attack", "n_correct"),
    [
        ({}, "white_box", 30),
        ({"gradient_free": [50, 20]}, "gradient_free", 20),
        ({"transfer": [29]}, "transfer", 29),
        ({"given": [70, 28]}, "given", 28),
        ({"controls": [90, 10]}, "control", 10),
        ({"gradient_free": [30], "controls": [30]}, "white_box", 30),  # no stronger than the grid's
        ({"iterations": [(50, 35), (100, 30), (200, 1)], "patch_sizes": [(2, 60), (6, 0)]}, "white_box", 30),  # other efforts, other sizes
    ],
)
def test_the_headline_is_the_worst_of_everything_that_was_tried(changes, attack, n_correct):
    report, _ = report_of(scores(**changes))
    robust, kind = report["headline"]["robust"], attack.replace("_", "-")
    assert (robust["attack"], robust["n_correct"], robust["accuracy"]) == (attack, n_correct, n_correct / 100)
    tried = [row for name in ("grid", "gradient_free", "transfer", "given", "controls") for row in report[name]]
    assert (robust["name"], robust["accuracy"]) in [(row["name"], row["accuracy"]) for row in tried]
    assert report["headline"]["n_patches"] == len(tried)
    assert report["headline"]["every_image_under_its_worst_patch"]["n_correct"] == n_correct  # the same images are hard for all
    words = f"({robust['low']:.1%} to {robust['high']:.1%}) under the worst of {len(tried)} universal patches ({kind})"
    assert headline_text(report) == f"{n_correct}.0% {words}"
    assert f"`{robust['name']}` ({kind})" in report_markdown(report).decode()


def test_every_image_counts_under_its_own_worst_patch():
    odd = dataclasses.replace(scored(0), predictions=(np.arange(100) < 20).astype(np.int64))  # other images than the grid's
    report, _ = report_of(dataclasses.replace(scores(**NOTHING_ELSE, grid=[60, 70]), controls=[odd]))
    assert report["headline"]["robust"]["n_correct"] == 60
    assert report["headline"]["every_image_under_its_worst_patch"]["n_correct"] == 40


@pytest.mark.parametrize(("n_correct", "n_images"), [(5, 10), (1, 10), (281, 1000), (9_700, 10_000)])
def test_intervals_hold_95_percent_of_the_posterior(n_correct, n_images):
    low, high = accuracy_interval(n_correct, n_images)
    x = np.linspace(0, 1, 2_000_001)[1:-1]
    log_density = (n_correct - 0.5) * np.log(x) + (n_images - n_correct - 0.5) * np.log1p(-x)
    cumulative = np.cumsum(np.exp(log_density - log_density.max()))
    np.testing.assert_allclose(np.interp([low, high], x, cumulative / cumulative[-1]), [0.025, 0.975], atol=1e-3)
    n_needed = images_needed(n_correct, n_images, high - low)
    assert 0.9 < n_needed / n_images < 1.5  # the normal approximation is poor where few images are wrong


def test_intervals_reach_the_ends():
    low, high = accuracy_interval(np.array([0, 10]), 10)
    assert (low[0], high[1]) == (0, 1)
    assert 0.2 < high[0] < 0.25
    np.testing.assert_allclose(low[1], 1 - high[0])
