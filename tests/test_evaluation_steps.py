"""The steps of an evaluation by themselves, on a toy network: plan, fit, score."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import StoppedError, UserError
from mat.config import EvaluationConfig, PatchTrainingConfig
from mat.data.reading import Records
from mat.robustness.fit import Callbacks, FittedPatch, draw_squares, fit_patches
from mat.robustness.measure import fit_and_score
from mat.robustness.plan import chunks, curve_specs, draw_offsets, grid_offsets, make_plan
from mat.robustness.score import position_gradients, score_patches
from mat.robustness.store import ReportDirectory
from mat.robustness.universal import Images, UniversalAttacks

SMALL = EvaluationConfig(n_targets=1, starts=("random",), iterations=7, search_iterations=30, images_per_iteration=4, images_at_once=8)


def plan_of(protocol=SMALL, *, n_validation=30, bank=None, transferred=(), given=(), **keys):
    """The plan of an evaluation on so many records of four classes."""
    network = {"image_size": 32, "n_classes": 4, "n_stacks": 2, "patch_shape": (12, 12, 3)}
    config = PatchTrainingConfig(**network | keys, evaluation=protocol)
    splits = (Records("", tf.zeros([n]), np.arange(n) % 4, np.arange(n), np.zeros((n, 2))) for n in (5000, n_validation))
    return make_plan(config, tuple(splits), bank=bank, transferred=transferred, given=given)


@pytest.fixture(scope="module")
def toy():
    """(attacks on a linear network that looks at the left half of an image, images to score on)."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(32, 32, 3, 4)) * (np.arange(32) < 16)[:, np.newaxis, np.newaxis]
    weights = tf.constant(weights.reshape(-1, 4), tf.float32)

    def model(images, training):
        return tf.reshape(images, [-1, 32 * 32 * 3]) @ weights / 100

    images = rng.random((30, 32, 32, 3), np.float32)
    attacks = UniversalAttacks(model, np.tile(images, (67, 1, 1, 1))[:2000], np.arange(2000) % 4, jit_compile=False)
    return attacks, Images(tf.constant(images), np.arange(30) % 4, np.arange(30))


# The plan.


def test_grids_are_products_and_names_are_unique():
    protocol, bank = EvaluationConfig(restarts=2), (np.zeros((2, 4, 4, 3)), np.zeros(2))
    plan = plan_of(protocol, n_classes=200, bank=bank)
    assert (len(plan.grid), len(plan.gradient_free)) == (6 * 4 * 2 * 2, 6 * 2)
    assert len({spec.name for spec in plan.grid + plan.gradient_free}) == 6 * 4 * 2 * 2 + 6 * 2
    targets = {spec.target for spec in plan.grid}
    assert len(targets) == 6
    assert targets != {spec.target for spec in plan_of(protocol, n_classes=200, seed=1).grid}
    few = plan_of(protocol, n_classes=3).grid
    assert {spec.target for spec in few} == {None, 0, 1, 2}
    assert {spec.start for spec in few} == {"random", "data", "grey"}


def test_curves_follow_patches_over_iterations_and_sizes():
    plan = plan_of(EvaluationConfig(patch_scales=(0.25, 0.5, 1.0, 1.5, 3.0)))
    curves = curve_specs(plan, plan.grid[:1])
    assert [spec.n_iterations for spec in curves if spec.patch_shape == (12, 12, 3)] == [125, 250, 500, 1000, 2000]
    assert {spec.patch_shape[0] for spec in curves if spec.n_iterations == 1000} == {12, 3, 6, 18}  # 36x36 does not fit
    assert len({spec.name for spec in curves}) == len(curves) == 8
    assert {spec.stream for spec in curves} == {f"{plan.grid[0].stream}-curve"}  # the grid's was chosen for its luck, too
    assert len(curve_specs(plan, [dataclasses.replace(plan.grid[0], n_iterations=1)])) == 2 + 3
    assert curve_specs(plan_of(EvaluationConfig(curves=False)), plan.grid[:1]) == []


def test_examples_are_drawn_by_the_seed():
    protocol = EvaluationConfig(max_images=10)
    zero, same, one = (plan_of(protocol, seed=seed) for seed in (0, 0, 1))
    for name, n in {"fit_examples": 2000, "scored_examples": 10}.items():
        examples = getattr(zero, name)
        assert len(set(examples)) == n
        assert np.all(np.diff(examples) > 0)
        np.testing.assert_array_equal(examples, getattr(same, name))
        assert np.any(examples != getattr(one, name))
    np.testing.assert_array_equal(plan_of().scored_examples, np.arange(30))


def test_plans_that_cannot_be_fitted_and_scored_are_refused():
    with pytest.raises(UserError, match=r"starts: \[bank\] starts attacks from a bank, and there is none"):
        plan_of(EvaluationConfig(starts=("bank",)))
    with pytest.raises(UserError, match=r"patch a to transfer is of the shape \[8, 8, 3\], and patch_shape: \[12, 12, 3\]"):
        plan_of(transferred=[("a", np.zeros((8, 8, 3)))])


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_chunks_hold_every_patch_once_and_only_like_ones(size):
    plan = plan_of(EvaluationConfig(), n_classes=10)
    specs = plan.grid + plan.gradient_free + curve_specs(plan, plan.grid[:3])
    made = list(chunks(specs, size))
    assert sorted((spec for chunk in made for spec in dict.fromkeys(chunk)), key=specs.index) == specs
    lengths = {}
    for chunk in made:
        assert len({(spec.attack, spec.n_iterations, spec.patch_shape) for spec in chunk}) == 1
        lengths.setdefault((chunk[0].attack, chunk[0].n_iterations, chunk[0].patch_shape), set()).add(len(chunk))
    assert all(len(found) == 1 and max(found) <= size for found in lengths.values())


def test_draws_stay_in_the_image_and_reach_its_ends():
    rng = np.random.default_rng(0)
    offsets = draw_offsets(rng, [2000], 16, (4, 16, 3))
    assert (offsets[:, 0].min(), offsets[:, 0].max(), offsets[:, 1].max()) == (0, 12, 0)
    squares, colors = draw_squares(rng, np.linspace(0, 0.999, 2000), (8, 12, 3))
    assert np.all(squares[:, 2] >= 1)
    assert np.all(squares[:, :2] >= 0)
    assert np.all(squares[:, :2] + squares[:, 2:] <= [8, 12])
    assert (squares[0, 2], squares[-1, 2]) == (4, 1)
    assert set(np.unique(colors)) == {0, 1}
    assert np.all(draw_squares(rng, np.array([1.0, 1.5]), (8, 12, 3))[0][:, 2] == 0)  # nothing is painted beyond the end
    assert grid_offsets(8, (7, 8, 3)) == [(0, 0), (1, 0)]  # corners, edges and the middle are few here


# Fitting and scoring.


@pytest.mark.parametrize("images_at_once", [4, 8])  # chunks of one patch, and of several, some of them filled up
def test_all_that_is_planned_is_done_and_counted(toy, images_at_once):
    work = []
    black = np.zeros((12, 12, 3), np.float32)
    plan = plan_of(
        SMALL.replace(images_at_once=images_at_once), transferred=[("a", black)], given=[("given-b", black), ("given-c", 1 - black)]
    )
    scores = fit_and_score(plan, *toy, Callbacks(advance=lambda amount, text: work.append(amount)))
    assert sum(work) == plan.cost == scores.cost
    assert [patch.spec for patch in scores.fitted] == plan.grid + plan.gradient_free
    assert [patch.name for patch in scores.transfer + scores.given] == ["transfer-a", "given-b", "given-c"]
    np.testing.assert_array_equal(scores.given[0].predictions, scores.transfer[0].predictions)
    assert len(scores.controls) == 2 * 10 + 1
    assert {len(patch.losses) for patch in scores.gradient_free} == {30}
    for patch in (*scores.fitted, *scores.controls, *scores.iterations, *scores.patch_sizes):
        assert 0 <= patch.patch.min() <= patch.patch.max() <= 1
        assert patch.predictions.shape == (30,)


def test_interrupted_work_goes_on_to_the_same_end(toy, tmp_path):
    def end(directory, n_saves=1000):
        saved, skipped = [], []

        def save(name, **arrays):
            if len(saved) == n_saves:
                raise StoppedError("stop", 15)
            saved.append(name)
            directory.save(name, **arrays)

        directory.create()
        return fit_and_score(plan_of(), *toy, Callbacks(directory.load, save, skip=skipped.append)), saved, sum(skipped)

    expected, names, skipped = end(ReportDirectory(tmp_path / "whole", {"seed": 0}))
    assert skipped == 0
    made_again = {3: names[2:], 7: [*names[:2], *names[7:]], len(names) - 1: names[-1:]}  # chunks are fitted again as a whole
    for n_saves, expected_names in made_again.items():
        directory = ReportDirectory(tmp_path / str(n_saves), {"seed": 0})
        with pytest.raises(StoppedError):
            end(directory, n_saves)
        if n_saves == 7:
            (directory.path / "restarts" / f"{names[0]}.npz").write_bytes(b"cut")
        scores, saved, skipped = end(directory)
        assert skipped > 0
        assert saved == expected_names
        lists = [scored.fitted + scored.iterations + scored.patch_sizes for scored in (scores, expected)]
        for patch, reference in zip(*lists, strict=True):
            assert patch.spec == reference.spec
            for array in ("patch", "predictions", "losses"):
                np.testing.assert_array_equal(getattr(patch, array), getattr(reference, array))
    directory.save(f"{names[0]}-predictions", patch=np.zeros((12, 12, 3)), predictions=np.zeros(30))  # of another patch
    scores, saved, _ = end(directory)
    assert saved == [f"{names[0]}-predictions"]
    np.testing.assert_array_equal(scores.grid[0].predictions, expected.grid[0].predictions)


def test_losses_and_logits_that_are_not_finite_end_the_evaluation(toy):
    def overflowing(images, training):
        return toy[0]._model(images, training) + tf.where(tf.reduce_any(images == 0.25, axis=[1, 2, 3]), np.inf, 0.0)[:, tf.newaxis]

    attacks = UniversalAttacks(overflowing, toy[0].images, toy[0].labels, jit_compile=False)
    with pytest.raises(UserError, match=r"NaN or infinite on 30 of 30 validation images under the patch a: .* precision: float32"):
        score_patches([FittedPatch("a", np.full((12, 12, 3), 0.25, np.float32))], plan_of(), attacks, toy[1], Callbacks())
    plan = plan_of(bank=(np.full((4, 12, 12, 3), 0.25, np.float32), np.arange(4)), protocol=SMALL.replace(starts=("bank",)))
    with pytest.raises(UserError, match="the loss became NaN or infinite while white_box-untargeted-bank-step0.02-0 was fitted"):
        fit_patches(plan.grid, plan, attacks, Callbacks())


def test_gradients_are_compared_over_positions(toy):
    """The network does not look at the right half of an image: no patch that lies there gets a gradient."""
    gradients = position_gradients(plan_of(), *toy, Callbacks())
    assert list(gradients) == [(row, column) for row in (0, 10, 20) for column in (0, 10, 20)]
    assert np.mean(list(gradients.values())) == pytest.approx(1)
    assert [gradients[row, 20] for row in (0, 10, 20)] == [0, 0, 0]
    assert min(gradients[row, 0] for row in (0, 10, 20)) > 1


def test_steps_fall_by_a_cosine_and_those_that_fill_the_last_call_are_zero(toy, monkeypatch):
    attacks, _ = toy
    plan, given, fit = plan_of(), [], attacks.fit
    monkeypatch.setattr(attacks, "fit", lambda *arguments: given.append(arguments[2]) or fit(*arguments))
    fit_patches(plan.grid[:1], plan, attacks, Callbacks())
    expected = plan.grid[0].step_size * (1 + np.cos(np.pi * np.arange(7) / 7)) / 2
    np.testing.assert_allclose(np.concatenate(given)[:, 0], [*expected, 0, 0, 0], rtol=1e-6)
