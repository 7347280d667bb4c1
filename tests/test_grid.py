"""The grid of an evaluation: its restarts, their chunks, and what is drawn for them."""

import dataclasses

import numpy as np

from mat.config import EvaluationConfig
from mat.robustness.plan import chunks, cosine_decay, curve_restarts, draw_offsets, draw_squares, grid_offsets, plan_grid


def test_grids_are_products_and_names_are_unique():
    protocol = EvaluationConfig(restarts=2)
    grid = plan_grid(protocol, n_classes=200, patch_shape=(24, 24, 3), seed=0, has_bank=True)
    assert len(grid) == 6 * 4 * 2 * 2 + 6 * 2
    assert len({restart.name for restart in grid}) == len(grid)
    targets = {restart.target for restart in grid}
    assert len(targets) == 6
    assert targets != {r.target for r in plan_grid(protocol, n_classes=200, patch_shape=(24, 24, 3), seed=1, has_bank=True)}
    few = plan_grid(protocol, n_classes=3, patch_shape=(24, 24, 3), seed=0, has_bank=False)
    assert {restart.target for restart in few} == {None, 0, 1, 2}
    assert {restart.start for restart in few} == {"random", "data", "grey"}
    curves = curve_restarts(protocol, grid[:1], 32)
    assert [r.n_iterations for r in curves if r.patch_shape == (24, 24, 3)] == [125, 250, 500, 1000, 2000]
    assert [r.patch_shape for r in curves if r.n_iterations == 1000] == [(24, 24, 3), (6, 6, 3), (12, 12, 3)]  # 36x36 does not fit
    assert len({restart.name for restart in curves}) == len(curves)
    assert {restart.stream for restart in curves} == {f"{grid[0].stream}-curve"}  # the grid's was chosen for its luck, too
    assert len(curve_restarts(protocol, [dataclasses.replace(grid[0], n_iterations=1)], 32)) == 4


def test_chunks_hold_every_restart_once_and_only_like_ones():
    protocol = EvaluationConfig()
    grid = plan_grid(protocol, n_classes=10, patch_shape=(4, 4, 3), seed=0, has_bank=True)
    made = list(chunks(grid, 5))
    assert sorted((restart for chunk, _ in made for restart in chunk), key=grid.index) == grid
    assert max(len(filled) for _, filled in made) == 5
    for attack in ("white_box", "gradient_free"):
        assert len({len(filled) for chunk, filled in made if chunk[0].attack == attack}) == 1
    for chunk, filled in made:
        assert filled[: len(chunk)] == chunk
        assert set(filled) == set(chunk)
        assert len({(restart.attack, restart.n_iterations) for restart in filled}) == 1


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
    factors = cosine_decay(100)
    assert factors[0] == 1
    assert 0 < factors[-1] < 0.01
    assert np.all(np.diff(factors) < 0)


def test_patches_are_compared_at_corners_edges_and_in_the_middle():
    assert grid_offsets(64, (24, 24, 3)) == [(row, column) for row in (0, 20, 40) for column in (0, 20, 40)]
    assert grid_offsets(8, (7, 8, 3)) == [(0, 0), (1, 0)]
    assert grid_offsets(8, (8, 8, 3)) == [(0, 0)]
