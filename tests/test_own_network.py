"""Own networks: where they come from, what is refused, training, resuming, files, and evaluations of saved classifiers."""

import json
import pathlib
import random
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.data.metadata import DATASET_FILE, Metadata
from mat.data.splits import read_splits
from mat.evaluate import RANGES, main, parse_arguments
from mat.models import create_model, load_weights, save_weights
from mat.models.kernels import convolution_kernels
from mat.models.own_network import INPUT_RANGES, inner_model, wrap_model
from mat.models.own_network_checks import check_trainable
from mat.models.own_weights import save_network
from mat.robustness.classifier_config import fill_values
from mat.robustness.input_range import check_input_range
from mat.step import cross_entropy
from tests import networks
from tests.conftest import SMALL, stop_at, trainer_of, write_tiny_split

OWN = {"image_size": 16, "n_classes": 5, "patch_shape": (4, 4, 3)}
FEW = {"iterations": 1, "n_targets": 0, "n_controls": 1, "n_fit_images": 16, "starts": ["random"]}


def own(name="small", **keys):
    """The model of a network in `tests.networks`, or in a file."""
    network = name if name.endswith(".keras") else f"tests.networks:{name}"
    return create_model(PatchTrainingConfig(**OWN | keys, network=network))


def images(n=3, size=16):
    return np.random.default_rng(1).random((n, size, size, 3), np.float32)


def assert_equal_weights(one, other):
    for first, second in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


# Where it comes from.


def test_a_function_gives_equal_weights_for_equal_seeds_and_leaves_other_draws_alone():
    random.seed(5)
    before = random.getstate()
    one, same, other = own(), own(), own(seed=1)
    assert random.getstate() == before
    assert_equal_weights(one, same)
    assert np.any(one.get_weights()[0] != other.get_weights()[0])
    training = [model(images(), training=True) for model in (one, same)]
    np.testing.assert_array_equal(*training)  # dropout too
    assert np.any(training[0] != one(images(), training=False))
    assert isinstance(inner_model(one), keras.Model)
    assert inner_model(create_model(PatchTrainingConfig(**SMALL))) is None


def test_a_file_starts_from_its_weights_or_fresh(tmp_path):
    model = networks.nested(16, 5)
    model.save(tmp_path / "net.keras")
    path = str(tmp_path / "net.keras")
    assert_equal_weights(own(path), model)
    fresh, again = (own(path, fresh_weights=True) for _ in range(2))
    assert_equal_weights(fresh, again)
    kernels = [network.get_weights()[0] for network in (fresh, model)]
    assert np.any(kernels[0] != kernels[1])
    np.testing.assert_allclose(kernels[0].std(), kernels[1].std(), rtol=0.3)


@pytest.mark.parametrize("input_range", INPUT_RANGES)
def test_images_come_in_the_range_that_is_asked_for(input_range):
    pixels = np.stack([np.full((16, 16, 3), value, np.float32) for value in (0, 0.25, 1)])
    pixels[..., 2] = 0.5
    inputs = keras.Input((16, 16, 3))
    identity = keras.Model(inputs, keras.layers.Flatten()(inputs))
    model = wrap_model(identity, image_size=16, n_classes=768, input_range=input_range)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    expected = {"0..1": pixels, "0..255": 255 * pixels, "-1..1": 2 * pixels - 1, "imagenet": (pixels - mean) / std}[input_range]
    np.testing.assert_allclose(model(pixels), expected.reshape(3, -1), rtol=1e-5, atol=1e-5)


def test_probabilities_become_logits_of_the_same_losses_and_gradients():
    soft, plain = own("softmax", logits=False), own()
    labels = tf.one_hot([0, 1, 4], 5)
    for model in (soft, plain):
        model.set_weights([2 * weight for weight in own().get_weights()])
    results = []
    for model in (soft, plain):
        with tf.GradientTape() as tape:
            x = tf.constant(images())
            tape.watch(x)
            loss = cross_entropy(labels, model(x, training=False))
        results.append((loss, tape.gradient(loss, x)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_precision_reaches_a_function_and_the_policy_is_put_back():
    model = own("small", precision="mixed_bfloat16")
    assert inner_model(model).layers[1].compute_dtype == "bfloat16"
    assert model(images()).dtype == tf.float32
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(("name", "n_kernels"), [("small", 4), ("vit", 1), ("dense", 0), ("nested", 0), ("own_class", 1)])
def test_weight_decay_takes_every_convolution_that_is_trained(name, n_kernels):
    assert len(convolution_kernels(own(name))) == n_kernels


# What is refused.


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"network": "model.h5"}, "network must be resnet, a .keras file or package.module:function. A model in another format"),
        ({"network": "resnet50"}, "network must be resnet"),
        ({"input_range": "0..255"}, "input_range: '0..255' has no effect on network: 'resnet'. Leave it out, or set network: FILE.keras"),
        ({"fresh_weights": True}, "fresh_weights: true has no effect"),
        ({"network": "a.keras", "precision": "mixed_bfloat16"}, "precision: mixed_bfloat16 has no effect on network: 'a.keras'"),
        ({"network": "a.keras", "input_range": "0-255"}, "input_range must be one of '0..1', '0..255', '-1..1', 'imagenet'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(UserError, match=re.escape(words)):
        PatchTrainingConfig(**keys)


def test_images_too_small_for_the_resnet_are_not_for_an_own_network():
    assert PatchTrainingConfig(**OWN, network="a.b:c").n_stacks == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", r"tests.networks:raises: raises(image_size=16, n_classes=5) raised KeyError: 'missing' ({networks}:"),
        ("nothing", "nothing(image_size=16, n_classes=5) is no Keras model, but builtins.NoneType"),
        ("other_arguments", "cannot be called as other_arguments(image_size=16, n_classes=5): missing a required argument: 'size'"),
        ("missing", "{networks} has no function missing. It has small, "),
        ("two_inputs", "takes 2 inputs, and an image is one"),
        ("two_outputs", "gives a list of 2 outputs. Give a network whose one output, not in a list, is the logits"),
        ("gray", "takes inputs [B, 16, 16, 1], not images [B, H, W, 3]. Give a network of RGB images"),
        ("channels_first", "takes inputs [B, 3, 16, 16], not images [B, H, W, 3]. It has the channels first"),
        ("larger", "takes images of 24x24 pixels, and image_size is 16. Set image_size: 24"),
        ("oblong", "takes images of 16x32 pixels, and image_size is 16. Give a network of square images"),
        ("features", "gives [B, 14, 14, 5], features and not logits [B, n_classes]. Build it with its classifier"),
        ("more_classes", "gives 8 outputs, and n_classes is 5. Set n_classes: 8, or give the network 5 outputs"),
        ("sigmoid", "gives 1 outputs, and n_classes is 5. Two classes need two outputs"),
        ("sigmoids", "gives a probability for each class by itself, as of a sigmoid, and not logits. Build it without"),
        ("softmax", "gives probabilities, as of a softmax, and not logits. Build it without (classifier_activation=None"),
        ("logarithms", "gives NaN or infinity on images in [0, 1]"),
        ("rounding", "its outputs have no gradient with respect to the image"),
        ("bytes_rescaled", "its layer rescaling takes images of 0..255, and input_range is 0..1. Set input_range: 0..255"),
        ("bytes_normalized", "its layer normalization takes images of 0..255, and input_range is 0..1"),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_words(name, words):
    keras.backend.clear_session()  # names of layers begin without numbers
    with pytest.raises(UserError) as raised:
        own(name)
    assert words.format(networks=networks.__file__) in str(raised.value) if "{" in words else words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_asked_for_makes_them_fit():
    assert own("softmax", logits=False).output_shape == (None, 5)
    assert own("bytes_rescaled", input_range="0..255").output_shape == (None, 5)
    with pytest.raises(UserError, match="logits: false, and its outputs are no probabilities, which sum to 1. Set logits: true"):
        own("small", logits=False)
    with pytest.raises(UserError, match="as of a sigmoid"):
        own("sigmoids", logits=False)
    for name, words in {
        "frozen": "has no trainable weights",
        "bfloat16": "its weights are bfloat16, and training keeps them in float32",
    }.items():
        with pytest.raises(UserError, match=words):
            check_trainable(own(name), name)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("nowhere.at_all:f", "network: nowhere.at_all:f: no module nowhere in "),
        ("tests.nowhere:f", "no module tests.nowhere"),
        ("broken:f", "importing broken raised ModuleNotFoundError: No module named 'nowhere' ({directory}/broken.py:2). Mend it"),
        ("here:f", "f(image_size=16, n_classes=5) is no Keras model, but builtins.int"),
    ],
)
def test_modules_are_found_in_the_working_directory(tmp_path, monkeypatch, network, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    pathlib.Path("broken.py").write_text("x = 1\nimport nowhere\n")
    pathlib.Path("here.py").write_text("def f(image_size, n_classes):\n    return 1\n")
    with pytest.raises(UserError) as raised:
        create_model(PatchTrainingConfig(**OWN, network=network))
    assert words.replace("{directory}", str(tmp_path)) in str(raised.value)


def lambda_network(path):
    inputs = keras.Input((16, 16, 3))
    scaled = keras.layers.Lambda(lambda x: 2 * x, output_shape=(16, 16, 3))(inputs)
    keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(scaled))).save(path)


class Unknown(keras.layers.Layer):
    """A layer that is not registered, of a module that is not there."""

    __module__ = "nowhere"

    def call(self, inputs):
        return inputs


def unknown_class(path):
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(Unknown()(inputs)))).save(path)


def test_files_that_cannot_be_loaded_are_told_why(tmp_path):
    lambda_network(tmp_path / "lambda.keras")
    unknown_class(tmp_path / "class.keras")
    networks.small(16, 5).save(tmp_path / "whole.keras")
    (tmp_path / "cut.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[:-1000])
    (tmp_path / "text.keras").write_text("not a model\n")
    networks.small(16, 5).save_weights(tmp_path / "w.weights.h5")
    shutil.copy(tmp_path / "w.weights.h5", tmp_path / "weights.keras")
    (tmp_path / "directory.keras").mkdir()
    for name, words in {
        "lambda": "has code of its own, such as a Lambda layer's, which could do anything on this machine, and so is not loaded",
        "class": "has classes that Keras does not know (",
        "none": "no such file (network). Give the file that model.save('NAME.keras') wrote",
        "cut": "not a Keras model, but a zip archive",
        "text": "not a Keras model, but text",
        "weights": "not a Keras model, but of no known kind",
        "directory": "cannot be read: Is a directory",
    }.items():
        path = tmp_path / f"{name}.keras"
        with pytest.raises(UserError, match=re.escape(f"{path}: {words}")):
            own(str(path))
    assert own(str(tmp_path / "lambda.keras"), safe_mode=False).output_shape == (None, 5)


# Files.


@pytest.mark.parametrize("name", ["small", "vit", "nested", "own_class"])
def test_weights_come_back_from_every_kind_of_file(tmp_path, name):
    model = own(name)
    save_weights(model, tmp_path / "w.weights.h5")
    files = ["w.weights.h5"]
    if name != "own_class":  # which Keras cannot save as a whole
        save_network(inner_model(model), tmp_path / "whole.keras")
        files.append("whole.keras")
    for file in files:
        other = own(name, seed=1)
        load_weights(other, tmp_path / file)
        np.testing.assert_array_equal(other(images(), training=False), model(images(), training=False))
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_weights_of_another_network_change_nothing(tmp_path):
    model, before = own(), own()
    for network, file, words in (
        (own("vit"), "vit.weights.h5", "these weights are not of this network: the network has 12 arrays, the file 39"),
        (own(n_classes=7), "classes.weights.h5", "an array of the network is [8, 5], where the file has [8, 7]"),
        (create_model(PatchTrainingConfig(**SMALL)), "original.h5", "these weights are not of this network"),
    ):
        save_weights(network, tmp_path / file)
        with pytest.raises(UserError, match=re.escape(words)):
            load_weights(model, tmp_path / file)
    (tmp_path / "text.weights.h5").write_text("text\n")
    with pytest.raises(UserError, match="not a weights file, but text"):
        load_weights(model, tmp_path / "text.weights.h5")
    assert_equal_weights(model, before)


# Training and evaluation.


def train(tiny_config, **keys):
    config = tiny_config(**keys)
    result = trainer_of(config).fit()
    return config, result


@pytest.mark.parametrize("name", ["small", "vit", "dense", "nested", "own_class", "regularized"])
def test_networks_are_trained_and_their_files_written(tiny_config, name, capsys):
    config, result = train(tiny_config, network=f"tests.networks:{name}", n_epochs=1)
    files = {path.name for path in config.result_dir.iterdir()}
    assert {"network_000.weights.h5", "log.csv", "patches.npz", "config.yaml"} <= files
    assert ("network.keras" in files) == (name != "own_class")
    output = capsys.readouterr().out
    assert ("network.keras: not written, as Keras cannot save this network" in output) == (name == "own_class")
    assert f"tests.networks:{name}, images in 0..1 to logits (depth, width, n_stacks, normalization do not apply)" in output
    trained, initial = create_model(config), create_model(config)
    load_weights(trained, config.result_dir / "network_000.weights.h5")
    changed = [np.any(one != other) for one, other in zip(trained.get_weights(), initial.get_weights(), strict=True)]
    assert np.mean(changed) == (2 / 14 if name == "nested" else 1)  # the head of the frozen network
    if "network.keras" in files:
        again = create_model(config.replace(network=str(config.result_dir / "network.keras")))
        np.testing.assert_array_equal(again(images(), training=False), trained(images(), training=False))


def test_regularizers_of_the_network_are_in_its_loss(tiny_config):
    losses = [trainer_of(tiny_config(network=f"tests.networks:{name}", weight_decay=0.0)) for name in ("small", "regularized")]
    batch = images(8), tf.one_hot(np.arange(8) % 4, 4)
    plain, regularized = (float(trainer.run.step.train_on_batch(*map(tf.constant, batch))[0]) for trainer in losses)
    kernel = create_model(losses[0].run.config).get_weights()[0]
    np.testing.assert_allclose(regularized - plain, 0.01 * np.sum(kernel**2), rtol=1e-3)


def test_a_run_does_not_go_on_with_another_network_in_the_file(tiny_config, tmp_path):
    path = str(tmp_path / "own.keras")
    networks.small(16, 4).save(path)
    config, _ = train(tiny_config, network=path, n_epochs=1)
    trainer_of(config, resume=True)
    networks.small(16, 4).save(path)
    with pytest.raises(UserError, match=r"own.keras: not the file that the run in .* was begun with"):
        trainer_of(config, resume=True)


@pytest.mark.parametrize("name", ["small", "vit"])
def test_a_resumed_run_gives_the_same_bits(tiny_config, name):
    """With the random states of dropout and the statistics of batch normalization."""
    keys = {"network": f"tests.networks:{name}"}
    whole, _ = train(tiny_config, **keys)
    config = tiny_config(**keys, unique_name="interrupted")
    interrupted = trainer_of(config)
    stop_at(interrupted, step=6)
    with pytest.raises(BaseException, match="Stopped after epoch 2 of 2, step 2 of 4"):
        interrupted.fit()
    trainer_of(config, resume=True).fit()
    for file in ("log.csv", "patches.npz"):
        one, other = ((directory / file).read_bytes() for directory in (whole.result_dir, config.result_dir))
        assert one == other
    one, other = (create_model(whole) for _ in range(2))
    load_weights(one, whole.result_dir / "network_001.weights.h5")
    load_weights(other, config.result_dir / "network_001.weights.h5")
    assert_equal_weights(one, other)


APPLICATIONS = ["mobile_net", "vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "efficient_net", "conv_next"))]


@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_keras_applications_and_a_transformer_train_and_are_evaluated(tiny_config, tiny_data, name):
    for split in ("train", "validation"):  # one step
        write_tiny_split(tiny_data, split, np.arange(4))
    keys = {"image_size": 64, "n_epochs": 1, "batch_size": 4, "n_patches": 3, "n_patch_trials": 1, "patch_shape": [24, 24, 3]}
    keys |= {"optimizer": {"n_iterations": 1}, "robust_evaluation": "quick", "evaluation": FEW, "initial_lr": 1e-3}
    config, result = train(tiny_config, network=f"tests.networks:{name}", **keys)
    initial, trained = create_model(config), result.model
    pairs = [(one, other) for one, other in zip(initial.trainable_variables, trained.trainable_variables, strict=True)]
    assert np.mean([np.any(one.numpy() != other.numpy()) for one, other in pairs]) > 0.85  # layers scaled by 1e-6 hardly move
    convolutions = [variable for variable in trained.trainable_variables if len(variable.shape) == 4]
    assert {id(kernel) for kernel in convolution_kernels(trained)} == {id(variable) for variable in convolutions}
    headline = result.report["headline"]
    assert 0 <= headline["robust"]["accuracy"] <= headline["clean"]["accuracy"]
    assert result.report["grid"][0]["last_loss"] > 0


# Evaluations of saved classifiers.

FAST = ["--quick", "--iterations", "2", "--max-images", "60", "--set", "evaluation.n_targets=1", "--set", "evaluation.n_controls=1"]


@pytest.fixture(scope="module")
def classifiers(undefended, tmp_path_factory):
    """A directory with a trained ResNet as `run.yaml` and `run.h5`, as `whole.keras`, and as `bytes.keras`, which takes 0..255."""
    config, weights = undefended
    directory = tmp_path_factory.mktemp("classifiers")
    config.to_yaml(directory / "run.yaml")
    shutil.copy(weights, directory / "run.h5")
    model = create_model(config)
    load_weights(model, weights)
    model.save(directory / "whole.keras")
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, model(inputs / 255)).save(directory / "bytes.keras")
    keras.Model(inputs, keras.layers.Softmax()(model(inputs))).save(directory / "softmax.keras")
    return directory


@pytest.fixture
def evaluate(classifiers, undefended, tmp_path, monkeypatch, capsys):
    """A function from arguments to (exit status, standard error, report) of `mat-evaluate`, in a directory of `classifiers`."""
    shutil.copytree(classifiers, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main([*arguments, *FAST])
        report = next(pathlib.Path().glob("*_evaluation/report.json"), None)
        return status, capsys.readouterr().err, json.loads(report.read_text()) if report else None

    run.data = undefended[0].data_dir
    return run


def rows(report):
    """Names of patches and the numbers of images that are right under them."""
    return [(row["name"], row["n_correct"]) for key in ("grid", "controls") for row in report[key]]


def test_a_saved_classifier_is_as_robust_as_the_same_weights_in_a_run(evaluate):
    _, _, expected = evaluate("run.yaml", "--weights", "run.h5")
    shutil.rmtree("run_quick_evaluation")
    for arguments in (
        ["--model", "whole.keras", "--data", evaluate.data],
        ["--model", "bytes.keras", "--data", evaluate.data, "--input-range", "0..255"],
        ["--model", "softmax.keras", "--data", evaluate.data, "--set", "logits=false"],
    ):
        status, errors, report = evaluate(*arguments)
        assert (status, errors) == (0, "")
        directory = pathlib.Path(arguments[1].replace(".keras", "_quick_evaluation"))
        assert json.loads((directory / "report.json").read_text()) == report
        shutil.rmtree(directory)
        if arguments[1] == "whole.keras":
            assert rows(report) == rows(expected)
            assert report["headline"] == expected["headline"]
            assert report["subject"]["network"] == "whole.keras"
            assert report["subject"]["patch_shape"] == [12, 12, 3]
        else:  # rounded otherwise
            np.testing.assert_allclose([n for _, n in rows(report)], [n for _, n in rows(expected)], atol=3)


def test_a_config_with_a_file_needs_no_weights_and_takes_others(evaluate):
    keys = {"network": "whole.keras", "image_size": 32, "n_classes": 10, "patch_shape": [12, 12, 3], "data_dir": evaluate.data}
    pathlib.Path("own.yaml").write_text(json.dumps(keys))
    status, _, report = evaluate("own.yaml")
    assert status == 0
    inner = keras.models.load_model("whole.keras")
    inner.set_weights([0 * weight for weight in inner.get_weights()])
    inner.save_weights("zeros.weights.h5")
    shutil.rmtree("whole_quick_evaluation")
    status, _, zeros = evaluate("own.yaml", "--weights", "zeros.weights.h5")
    assert status == 0
    assert zeros["headline"]["clean"]["accuracy"] < 0.5 < report["headline"]["clean"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "none.keras", "--data", "DATA"], "none.keras: no such file (network)"),
        (["--model", "run.h5", "--data", "DATA"], "network must be resnet, a .keras file"),
        (["--model", "whole.keras", "--data", "nowhere"], "nowhere/train.tfrecord: no such file"),
        (["--model", "whole.keras", "--data", "DATA", "--set", "n_clases=3"], "unknown key n_clases. Did you mean n_classes?"),
        (["--model", "whole.keras", "--data", "DATA", "--set", "image_size=64"], "takes images of 32x32 pixels, and image_size is 64"),
        (["--model", "whole.keras", "--data", "DATA", "--set", "fresh_weights=true"], "fresh_weights: true puts the weights"),
        (["run.yaml"], "run.yaml: its network: resnet comes without weights. Give them with --weights FILE"),
        (["run.yaml", "--weights", "whole.keras"], "whole.keras: not a weights file, but a whole Keras model"),
        (["--model", "softmax.keras", "--data", "DATA"], "gives probabilities, as of a softmax"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_words(evaluate, arguments, words):
    status, errors, report = evaluate(*(evaluate.data if argument == "DATA" else argument for argument in arguments))
    assert status == 2
    assert words in errors
    assert errors.count("\n") == 1
    assert report is None


def test_a_runs_config_does_not_stand_for_the_weights_that_it_began_with(evaluate):
    pathlib.Path("run/checkpoints").mkdir(parents=True)
    pathlib.Path("run/config.yaml").write_text("network: whole.keras\nimage_size: 32\n")
    status, errors, _ = evaluate("run/config.yaml")
    assert status == 2
    assert "run/config.yaml: its run has weights of its own. Give those to evaluate with --weights FILE" in errors


def test_the_ranges_of_the_config_are_those_of_the_networks():
    assert set(RANGES) == set(INPUT_RANGES)


def test_another_range_than_the_network_wants_is_refused_with_both_accuracies(evaluate):
    status, errors, report = evaluate("--model", "bytes.keras", "--data", evaluate.data)
    assert status == 2
    assert re.search(
        r"bytes.keras: with input_range: 0..1 it classifies \d+.\d% of 200 validation images correctly, and with 0..255 (8|9)\d.\d%. "
        r"Set input_range: 0..255 \(--input-range 0..255\), or say --input-range 0..1",
        errors,
    )
    assert report is None


def test_a_range_that_is_named_in_so_many_words_is_taken_with_a_warning(evaluate, capsys):
    status, errors, report = evaluate("--model", "bytes.keras", "--data", evaluate.data, "--input-range", "0..1")
    assert (status, errors) == (0, "")
    assert report["headline"]["clean"]["accuracy"] < 0.5


@pytest.mark.parametrize(
    "arguments",
    [[], ["run.yaml", "--model", "whole.keras"], ["--model", "a.keras"], ["--model", "a.keras", "--data", "d", "--weights", "w"]],
)
def test_wrong_usage_is_told_with_the_right_one(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--model FILE.keras" in capsys.readouterr().err


@pytest.mark.parametrize("input_range", INPUT_RANGES)
def test_every_range_can_be_said_on_the_command_line(input_range):
    arguments = ["--model", "a.keras", "--data", "d", "--quick"]
    for words in (["--input-range", input_range], [f"--input-range={input_range}"]):
        assert parse_arguments([*words, *arguments]).input_range == input_range


@pytest.mark.parametrize("input_range", INPUT_RANGES)
def test_a_network_that_knows_nothing_is_in_no_wrong_range(undefended, input_range):
    config, _ = undefended
    config = config.replace(network="tests.networks:small", input_range=input_range)
    check_input_range(config, create_model(config), read_splits(config.dataset, config.data_dir, n_classes=10)[1])


def test_sizes_that_a_classifier_leaves_open_are_those_of_the_data(tmp_path):
    (tmp_path / DATASET_FILE).write_bytes(Metadata(image_size=48, classes=["a", "b", "c"]).to_json())
    any_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    data = {"data_dir": str(tmp_path)}
    found = {"image_size": 48, "n_classes": 3, "patch_shape": [18, 18, 3]}
    assert fill_values(any_size, data) == data | found
    assert fill_values(any_size, {}) == {"n_classes": 3, "patch_shape": [24, 24, 3]}
    assert fill_values(networks.OwnClass(3), data) == data | found
    assert fill_values(networks.small(16, 5), data) == data | {"image_size": 16, "n_classes": 5, "patch_shape": [6, 6, 3]}
    given = {"image_size": 32, "patch_shape": [8, 8, 3]}
    assert fill_values(networks.small(16, 5), given) == given | {"n_classes": 5}
