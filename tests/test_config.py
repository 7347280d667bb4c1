"""Configs: what is read, what is refused and how, what is written."""

import dataclasses
import pathlib

import pytest

from mat.config import EvaluationConfig, OptimizerConfig, PatchTrainingConfig
from mat.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"

ORIGINAL = """\
base_result_dir: BASE_RESULT_DIR
unique_name: mat
data_dir: DATA_DIR
patch_lr: 0.5
initial_lr: 0.033
n_epochs: 75
batch_size: 64
label_smoothing: 0.0
n_patches: 1000
n_patch_trials: 5
patch_shape: [24, 24, 3]
patch_initialization: data

optimizer: !!python/object:config.OptimizerConfig
  min_step_size: 0.0001
  max_step_size: 0.1
  n_iterations: 7
"""
BLOCK_LIST = "patch_shape:\n- 24\n- 24\n- 3"
SAVED_BY_ORIGINAL = "!!python/object:config.PatchTrainingConfig\n" + ORIGINAL.replace("patch_shape: [24, 24, 3]", BLOCK_LIST)


@pytest.fixture
def read(tmp_path):
    """A function from YAML text and overrides to the config."""

    def from_text(text, *overrides):
        path = tmp_path / "config.yaml"
        path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
        return PatchTrainingConfig.from_yaml(path, overrides)

    return from_text


def test_defaults_are_the_published_setting():
    assert PatchTrainingConfig.from_yaml(CONFIGS / "mat.yaml") == PatchTrainingConfig()
    config = PatchTrainingConfig()
    assert (config.patch_lr, config.initial_lr, config.n_epochs, config.batch_size, config.label_smoothing) == (0.25, 0.033, 75, 128, 0.0)
    assert (config.n_patches, config.n_patch_trials, config.patch_shape, config.patch_initialization) == (1000, 5, (24, 24, 3), "data")
    assert config.optimizer == OptimizerConfig(min_step_size=1e-4, max_step_size=0.1, n_iterations=5, targeted_attack=True)
    assert (config.depth, config.width, config.n_stacks, config.normalization, config.weight_decay) == (14, 4, 4, "strip", 1e-4)


@pytest.mark.parametrize(
    ("file", "classes"), [("mat.yaml", (PatchTrainingConfig, OptimizerConfig)), ("evaluation.yaml", (EvaluationConfig,))]
)
def test_published_configs_give_every_key_with_its_default(file, classes):
    text = (CONFIGS / file).read_text()
    names = [f.name for cls in classes for f in dataclasses.fields(cls)]
    assert [name for name in names if f"{name}:" not in text and name != "evaluation"] == []
    assert PatchTrainingConfig.from_yaml(CONFIGS / file) == PatchTrainingConfig()


@pytest.mark.parametrize("text", [ORIGINAL, SAVED_BY_ORIGINAL])
def test_original_files_load(read, text):
    config = read(text)
    assert (config.patch_lr, config.batch_size, config.optimizer.n_iterations, config.data_dir) == (0.5, 64, 7, "DATA_DIR")
    assert config.optimizer.targeted_attack is True


def test_written_config_reads_back(tmp_path, read):
    config = dataclasses.replace(read(ORIGINAL, "unique_name='{{literal}}_{seed}'", "jit_compile=true", "weight_decay=5e-7"))
    assert config.unique_name == "{literal}_0"
    config.to_yaml(tmp_path / "written.yaml")
    assert PatchTrainingConfig.from_yaml(tmp_path / "written.yaml") == config


def test_overrides_replace_keys_and_exponents_are_numbers(read):
    config = read(ORIGINAL, "optimizer.n_iterations=3", "weight_decay=1e-4", "initial_lr=1", "jit_compile=false")
    assert (config.optimizer.n_iterations, config.weight_decay, config.initial_lr, config.jit_compile) == (3, 1e-4, 1.0, False)
    assert isinstance(config.initial_lr, float)
    assert read("patch_lr: 2.5E-1\ninitial_lr: 1e-2\n").patch_lr == 0.25


def test_unique_name_is_a_format_string(read):
    name = read(ORIGINAL, "unique_name='{data_dir}_{patch_shape}_{optimizer[n_iterations]}_{id}_{date}'", "data_dir=a/b").unique_name
    prefix, identifier, day, time = name.rsplit("_", 3)
    assert prefix == "a_b_24_24_3_7"
    assert len(identifier) == 8
    int(identifier, 16)
    assert (len(day.split("-")), len(time.split("-"))) == (3, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a mapping of keys"),
        ("- 1\n- 2\n", "a mapping of keys"),
        ("seed: [1\n", "line 2"),
        (b"seed: \xff\xfe\n", "not a valid config"),
        ("seed: 1\nseed: 2\n", "'seed' is given twice"),
        ("seed: !!python/object/apply:os.system ['true']\n", "!!python/object/apply:os.system"),
        ("!!python/object:os.Path\nseed: 1\n", "!!python/object:os.Path"),
        ("seed: &a [*a]\n", "column 11: the alias stands for a value that it is itself a part of"),
        ("optimizer: !!python/object:config.OptimizerConfig [a, b]\n", "a section must be a mapping"),
        ("optimizer: !!python/object:config.OptimizerConfig ab\n", "a section must be a mapping"),
        ("seed: !!map [1]\n", "a section must be a mapping"),
        ("seed: !!bool maybe\n", "does not fit its tag !!bool"),
        ("seed: !!int ''\n", "does not fit its tag !!int"),
        ("seed: !!timestamp x\n", "does not fit its tag !!timestamp"),
        (f"seed: 0x{'f' * 5000}\n", "a number of more than 100 characters"),
        ('data_dir: "a\\0b"\n', "data_dir must be a path of printable text"),
        ('data_dir: "\\uD800"\n', "data_dir"),
        (f"base_result_dir: {'x' * 300}\n", "base_result_dir must be a path"),
        ("n_epoch: 3\n", "Did you mean n_epochs?"),
        ("optimizer: {n_iteration: 3}\n", "Did you mean optimizer.n_iterations?"),
        ("xyzzy: 3\n", "The keys are: base_result_dir"),
        ("7: 3\n", "unknown key 7"),
        ("optimizer: 3\n", "optimizer must be a section"),
        ("patch_lr: fast\n", "patch_lr must be a number in [0, 1]. Received: 'fast'"),
        ("patch_lr: 1.5\n", "patch_lr must be in [0, 1]. Received: 1.5"),
        ("patch_lr: .nan\n", "patch_lr must be in [0, 1]. Received: nan"),
        ("patch_lr: -0.1\n", "patch_lr must be in [0, 1]. Received: -0.1"),
        ("patch_lr:\n", "Received: null"),
        ("initial_lr: -0.033\n", "initial_lr must be in (0, 1000]. Received: -0.033"),
        ("initial_lr: .inf\n", "initial_lr must be in (0, 1000]. Received: inf"),
        ("weight_decay: -1\n", "weight_decay must be in [0"),
        ("n_epochs: 0\n", "n_epochs must be in [1"),
        ("n_epochs: 7.5\n", "n_epochs must be a whole number"),
        ("n_epochs: true\n", "n_epochs must be a whole number"),
        ("n_epochs: 2020-01-01\n", "n_epochs must be a whole number"),
        ("depth: 13\n", "the nearest are 8 and 14. Received: 13"),
        ("patch_shape: [65, 24, 3]\n", "at most [64, 64, 3]. Received: [65, 24, 3]"),
        ("patch_shape: [24, 24]\n", "patch_shape must be [height, width, 3]"),
        ("patch_shape: [24, 24, 1]\n", "patch_shape must be [height, width, 3]"),
        ("patch_shape: 24\n", "patch_shape must be a list"),
        ("image_size: 32\n", "Set n_stacks: 3"),
        ("normalization: groups\n", "normalization must be one of 'strip', 'group'"),
        ("jit_compile: maybe\n", "jit_compile must be one of 'auto', true, false. Received: 'maybe'"),
        ("jit_compile: 1\n", "jit_compile must be one of"),
        ("data_dir: 7\n", "data_dir must be a string. Received: 7"),
        ("label_smoothing: 0.999\n", "label_smoothing must be in [0, 0.995] for 200 classes"),
        ("dataset: demo\n", "image_size: 32 and n_classes: 10"),
        ("optimizer: {min_step_size: 0.2}\n", "min_step_size must not exceed"),
        ("evaluation: {attacks: [white_box, magic]}\n", "evaluation.attacks[1] must be one of 'white_box', 'gradient_free'"),
        ("evaluation: {attacks: [gradient_free]}\n", "evaluation.attacks must have white_box"),
        ("evaluation: {attacks: []}\n", "evaluation.attacks must be a list of at least one item. Received: ()"),
        ("evaluation: {starts: random}\n", "evaluation.starts must be a list"),
        ("evaluation: {starts: [grey, grey]}\n", "must not name an item twice"),
        ("evaluation: {step_sizes: [0.1, 2]}\n", "evaluation.step_sizes[1] must be in (0, 1]. Received: 2"),
        ("evaluation: {max_images: 0}\n", "evaluation.max_images must be in [1"),
        ("evaluation: {images_at_once: 8}\n", "evaluation.images_per_iteration must not exceed"),
        ("evaluation: {iteration: 8}\n", "Did you mean evaluation.iterations?"),
        ("plain_baseline: true\nn_patches: 0\n", "needs n_patches above 0"),
        ("plain_baseline: true\nrobust_evaluation: none\n", "robust_evaluation: quick or full"),
        ("unique_name: '{epochs}'\n", "unique_name may use {date}"),
        ("unique_name: '{'\n", "unique_name may use {date}"),
        ("unique_name: ../elsewhere\n", "below base_result_dir"),
        ("unique_name: ''\n", "below base_result_dir"),
        ("unique_name: '{seed:9999999999}'\n", "too wide"),
        ("unique_name: '{seed:000000255000000255}'\n", "too wide"),
        ("unique_name: 'run[1]'\n", "unique_name must be a path without brackets and backslashes. Received: 'run[1]'"),
        ("base_result_dir: 'my\\results'\n", "base_result_dir must be a path without brackets"),
        (f"unique_name: {'x' * 300}\n", "each part of at most 255 bytes"),
    ],
)
def test_faulty_configs_are_refused_in_words(read, tmp_path, text, words):
    with pytest.raises(UserError) as refusal:
        read(text)
    message = str(refusal.value)
    assert message.startswith(str(tmp_path / "config.yaml"))
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["seed", "=3", "seed=[1", "seed.x=1", "sead=1", "seed=one"])
def test_faulty_overrides_are_refused(read, override):
    with pytest.raises(UserError, match="--set"):
        read("seed: 1\n", override)


def test_resuming_wants_a_name_that_stays(tmp_path):
    (tmp_path / "config.yaml").write_text("unique_name: run_{date}\nbase_result_dir: results\n")
    with pytest.raises(UserError, match=r"such as results/RUN/config\.yaml"):
        PatchTrainingConfig.from_yaml(tmp_path / "config.yaml", resume=True)
    (tmp_path / "config.yaml").write_text("unique_name: run_{seed}_{{date}}\n")
    assert PatchTrainingConfig.from_yaml(tmp_path / "config.yaml", resume=True).unique_name == "run_0_{date}"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        PatchTrainingConfig.from_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        PatchTrainingConfig.from_yaml(tmp_path)


def test_smallest_fitting_network_is_accepted():
    for image_size, n_stacks in ((8, 1), (29, 3), (32, 3), (57, 4), (64, 4)):
        config = {"image_size": image_size, "n_stacks": n_stacks, "patch_shape": (4, 4, 3)}
        PatchTrainingConfig(**config)
        with pytest.raises(UserError, match=f"Set n_stacks: {n_stacks} "):
            PatchTrainingConfig(**config | {"n_stacks": n_stacks + 1})


def test_quick_protocols_are_never_dearer():
    quick = EvaluationConfig().quick()
    assert (quick.iterations, quick.starts, quick.attacks, quick.curves) == (100, ("random",), ("white_box",), False)
    cheap = EvaluationConfig(iterations=7, images_per_iteration=3, n_fit_images=50, n_targets=2, max_images=20).quick()
    assert (cheap.iterations, cheap.images_per_iteration, cheap.n_fit_images, cheap.n_targets, cheap.max_images) == (7, 3, 50, 2, 20)


def test_plain_baseline_differs_in_its_patches_only():
    config = PatchTrainingConfig(plain_baseline=True, unique_name="run")
    plain = config.without_patches()
    changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(plain, f.name)}
    assert changed == {"n_patches", "plain_baseline", "unique_name"}
    assert (plain.n_patches, plain.unique_name) == (0, "run_plain")
