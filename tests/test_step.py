"""The training step against the original's golden values, under XLA, and where losses are not finite."""

import numpy as np
import pytest
import tensorflow as tf

from mat.attack import i_fgsm
from mat.config import PatchTrainingConfig
from mat.models import create_model
from mat.patch import PatchBank, apply_patches
from mat.results.schedule import learning_rate
from mat.step import TrainingStep, cross_entropy
from tests.conftest import SMALL, decode_offsets, golden, load_golden_model

SMALL_KEYS = {"image_size": 8, "n_stacks": 1, "n_classes": 2, "depth": 8, "width": 1, "patch_shape": (4, 4, 3)}


def make_step(model, bank, **arguments):
    defaults = {"n_trials": 5, "n_iterations": 5, "targeted": True, "patch_lr": 0.25, "weight_decay": 1e-4, "seed": 0, "jit_compile": False}
    return TrainingStep(model, bank, **defaults | arguments)


def patch_loss(model, images, labels, offsets):
    """The loss of each image as a function of its patch."""
    return lambda patches: cross_entropy(labels, model(apply_patches(images, patches, offsets), training=False))


def test_schedule_equals_the_original():
    z = golden("schedule")
    n_epochs, initial_lr = int(z["n_epochs"]), float(z["initial_lr"])
    np.testing.assert_allclose([learning_rate(e, n_epochs=n_epochs, initial_lr=initial_lr) for e in range(n_epochs)], z["lr"], atol=1e-8)


@pytest.mark.parametrize("kind", ["targeted", "untargeted"])
def test_gradients_and_refined_patches_equal_the_original(golden_model, kind):
    z = golden("step")
    offsets = np.stack([z["row_offset"], z["col_offset"]], axis=-1)
    targeted = kind == "targeted"
    loss_fn = patch_loss(golden_model, z["images"], tf.one_hot(z["targets" if targeted else "labels"], 200), offsets)
    patches = tf.constant(z["patches"])
    with tf.GradientTape() as tape:
        tape.watch(patches)
        loss = tf.reduce_mean(loss_fn(patches))
    gradient, expected = tape.gradient(loss, patches).numpy(), z[f"gradient_{kind}"]
    np.testing.assert_allclose(loss, z[f"loss_{kind}"], rtol=1e-4)
    assert np.linalg.norm(gradient - expected) < 1e-3 * np.linalg.norm(expected)
    assert np.mean(np.sign(gradient) == np.sign(expected)) > 0.999
    for n_iterations in (1, 5):
        refined = i_fgsm(loss_fn, patches, step_sizes=z["step_sizes"], n_iterations=n_iterations, targeted=targeted)
        assert np.mean(np.abs(refined - z[f"ifgsm{n_iterations}_{kind}"]) < 1e-5) > 0.99


def test_sgd_steps_equal_the_original(golden_model):
    z = golden("step")
    offsets = np.stack([z["row_offset"], z["col_offset"]], axis=-1)
    images, labels = apply_patches(z["images"], z["patches"], offsets), tf.one_hot(z["labels"], 200)
    np.testing.assert_allclose(golden_model(images), z["logits_patched"], atol=1e-4)
    step = make_step(golden_model, None)
    step.optimizer.learning_rate.assign(float(z["learning_rate"]))
    for loss, accuracy in zip(z["sgd_loss"], z["sgd_accuracy"], strict=True):
        ours = step.train_on_batch(images, labels)
        np.testing.assert_allclose(ours, [loss, accuracy], atol=1e-4)
    weights = {f"{layer.name}/{w.name}:0": w.numpy() for layer in golden_model.layers for w in layer.weights}
    assert sorted(weights) == sorted(z["sgd_weight_names"])
    for name, norm, head in zip(z["sgd_weight_names"], z["sgd_weight_norms"], z["sgd_weight_heads"], strict=True):
        assert np.linalg.norm(weights[name]) == pytest.approx(norm, abs=1e-4)
        np.testing.assert_allclose(np.resize(weights[name].ravel()[:64], 64), head, atol=1e-4)


def test_momentum_holds_the_rate_of_its_time():
    """v <- 0.9 v - lr g; w <- w + v, by hand on one dense layer that sees equal gradients and two rates."""
    model = create_model(PatchTrainingConfig(**SMALL_KEYS))
    step = make_step(model, None, weight_decay=0.0)
    bias = model.get_layer("dense").bias
    images, labels = tf.zeros([4, 8, 8, 3]), tf.one_hot([0, 0, 0, 1], 2)
    expected, velocity = bias.numpy(), 0.0
    for rate in (0.1, 0.01, 0.001):
        gradient = tf.reduce_mean(tf.nn.softmax(model(images)) - labels, axis=0).numpy()
        velocity = 0.9 * velocity - rate * gradient
        expected = expected + velocity
        step.optimizer.learning_rate.assign(rate)
        step.train_on_batch(images, labels)
        np.testing.assert_allclose(bias.numpy(), expected, atol=1e-6)


def run_trace(model, z, monkeypatch, *, targeted):
    """Training steps on a trace's batches with its draws: what each selects and refines, its loss and accuracy, and the final bank."""
    batch_size, offsets = int(z["batch_size"]), decode_offsets(z["trial_randomness"])
    bank = PatchBank(z["meta_start"], z["targets"], z["step_sizes"])
    step = make_step(model, bank, n_iterations=int(z["n_iterations"]), targeted=targeted, patch_lr=float(z["patch_lr"]))
    step.optimizer.learning_rate.assign(float(z["learning_rate"]))
    draws = [tf.Variable(z["trial_indices"][0]), tf.Variable(offsets[0])]
    monkeypatch.setattr("mat.step.draw_trials", lambda *_, **__: tuple(draw.read_value() for draw in draws))

    attack = tf.function(step.attack, autograph=False)
    outputs = []
    for i in range(len(offsets)):
        draws[0].assign(z["trial_indices"][i])
        draws[1].assign(offsets[i])
        batch = slice(i * batch_size, (i + 1) * batch_size)
        images, labels = tf.constant(z["images"][batch]), tf.one_hot(z["labels"][batch], 200)
        _, refined, indices, chosen_offsets = attack(images, labels)
        outputs.append([x.numpy() for x in (indices, chosen_offsets, refined, *step.train_on_batch(images, labels))])
    return *(np.stack(x) for x in zip(*outputs, strict=True)), bank.patches.numpy()


@pytest.mark.parametrize("kind", ["targeted", "untargeted"])
def test_whole_steps_equal_the_original(golden_model, monkeypatch, kind):
    z = golden(f"trace_{kind}")
    indices, offsets, refined, loss, accuracy, bank = run_trace(golden_model, z, monkeypatch, targeted=kind == "targeted")
    np.testing.assert_array_equal(indices, z["selected_indices"])
    np.testing.assert_array_equal(offsets, decode_offsets(z["selected_randomness"]))
    np.testing.assert_allclose(accuracy, z["accuracy"], atol=1e-6)
    np.testing.assert_allclose(loss[0], z["loss"][0], rtol=1e-4)
    np.testing.assert_allclose(loss, z["loss"], rtol=1e-4 if kind == "untargeted" else 0.02)
    assert np.mean(np.abs(refined[0] - z["refined"][0]) < 1e-5) > 0.99
    if kind == "untargeted":  # targeted, five iterations amplify rounding
        assert np.mean(np.abs(bank - z["meta_end"]) < 1e-4) > 0.99


@pytest.mark.parametrize(("kind", "tolerances"), [("untargeted", [1e-4, 1e-4, 1e-4]), ("targeted", [1e-4, 0.02, 0.02])])
def test_xla_gives_the_same_draws_and_losses(kind, tolerances):
    """With small steps: a gradient near zero whose sign is rounded moves a pixel by two whole steps, which later losses amplify.

    Untargeted with the golden weights, targeted with a small network, which XLA compiles sooner.
    """
    if kind == "untargeted":
        z, n_classes, make_model = golden("trace_untargeted"), 200, load_golden_model
        images, labels, patches, targets, step_sizes = z["images"], z["labels"], z["meta_start"], z["targets"], z["step_sizes"] / 10
    else:
        rng, n_classes = np.random.default_rng(0), 5
        images, labels = rng.random((24, 16, 16, 3), np.float32), rng.integers(0, n_classes, 24)
        patches, targets, step_sizes = rng.random((6, 4, 4, 3), np.float32), np.arange(6) % n_classes, np.full(6, 1e-3, np.float32)

        def make_model():
            return create_model(PatchTrainingConfig(**SMALL))

    labels, losses, draws = tf.one_hot(labels, n_classes), {}, {}
    for jit_compile in (False, True):
        bank = PatchBank(patches, targets, step_sizes)
        arguments = {"n_trials": 3, "n_iterations": 5 if kind == "targeted" else 3, "targeted": kind == "targeted"}
        step = make_step(make_model(), bank, **arguments, jit_compile=jit_compile)
        step.optimizer.learning_rate.assign(0.01)
        draws[jit_compile] = tf.function(lambda step=step: step.draw_trials(8, images.shape[1:3]), jit_compile=jit_compile)()
        losses[jit_compile] = [step.train_on_batch(images[i : i + 8], labels[i : i + 8])[0].numpy() for i in (0, 8, 16)]
    for without, with_xla in zip(draws[False], draws[True], strict=True):
        np.testing.assert_array_equal(without, with_xla)
    for without, with_xla, tolerance in zip(losses[False], losses[True], tolerances, strict=True):
        assert with_xla == pytest.approx(without, rel=tolerance)


def test_a_step_that_is_not_finite_changes_nothing_any_more():
    model = create_model(PatchTrainingConfig(**SMALL_KEYS, normalization="batch"))
    bank = PatchBank(np.full((3, 4, 4, 3), 0.5, np.float32), np.zeros(3), np.full(3, 0.1))
    step = make_step(model, bank, n_trials=2, n_iterations=1, targeted=False)
    step.optimizer.learning_rate.assign(0.01)
    state = [*model.weights, *step.optimizer.velocities, bank.patches]
    start = [variable.numpy() for variable in state]
    images, labels = tf.random.stateless_uniform([4, 8, 8, 3], [0, 1]), tf.one_hot([0, 0, 1, 1], 2)
    step.train_on_batch(images, labels)
    before, metrics = [variable.numpy() for variable in state], step.metrics()
    assert all(np.any(one != other) for one, other in zip(start, before, strict=True))  # batch statistics too
    step.train_on_batch(images * np.nan, labels)
    step.train_on_batch(images, labels)
    assert (int(step.failed_step), int(step.step), step.metrics()) == (1, 1, metrics)
    for one, variable in zip(before, state, strict=True):
        np.testing.assert_array_equal(one, variable)


def test_metrics_are_means_since_their_reset(golden_model):
    z = golden("trace_untargeted")
    step = make_step(golden_model, None)
    assert np.isnan(step.metrics()).all()
    images, labels = tf.constant(z["images"][:8]), tf.one_hot(z["labels"][:8], 200)
    step.optimizer.learning_rate.assign(0.01)
    np.testing.assert_allclose(np.mean([step.train_on_batch(images, labels) for _ in range(2)], axis=0), step.metrics(), rtol=1e-6)
    step.reset_metrics()
    assert np.isnan(step.metrics()).all()
