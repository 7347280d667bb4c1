"""Configs: what is read, what is refused and how, what is written."""

import codecs
import json
import pathlib
import shlex

import pydantic
import pytest

from mat import evaluate, train
from mat.cli.errors import UserError
from mat.cli.paths import expand_path
from mat.config import EvaluationConfig, OptimizerConfig, PatchTrainingConfig
from mat.models import weights
from mat.tools import benchmark, config_table, interruptions

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
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return PatchTrainingConfig.from_yaml(path, overrides)

    return from_text


def test_published_configs_and_the_document_give_every_key_with_its_default():
    in_files = ""
    for name in ("mat.yaml", "evaluation.yaml"):
        assert PatchTrainingConfig.from_yaml(CONFIGS / name) == PatchTrainingConfig()
        in_files += (CONFIGS / name).read_text()
    assert [key for key, _, _ in PatchTrainingConfig.key_table() if f"{key.rpartition('.')[2]}:" not in in_files] == []
    document = config_table.DOCUMENT.read_text("utf-8")
    assert document == config_table.with_table(document), "run python -m mat.tools.config_table"
    assert "| `n_epochs` | `75` | passes over the training images |" in document


@pytest.mark.parametrize("text", [ORIGINAL, SAVED_BY_ORIGINAL])
def test_original_files_load(read, text):
    config = read(text)
    assert (config.patch_lr, config.batch_size, config.optimizer.n_iterations, config.data_dir) == (0.5, 64, 7, "DATA_DIR")
    assert config.optimizer.targeted_attack is True


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
        ("seed: [1\n", "line 2"),
        (b"seed: \xff\xfe\n", "not a config: invalid start byte at byte 6. Save it as UTF-8"),
        ("seed: 1\nseed: 2\n", "'seed' is given twice"),
        ("seed: !!python/object/apply:os.system ['true']\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        (b"seed: \x00", "a zero, as of UTF-16 without a byte-order mark, at byte 6. Save it as UTF-8"),
        ("optimizer: !!python/object:config.OptimizerConfig\n", "a section must be a mapping"),
        ("n_epoch: 3\n", "Did you mean n_epochs?"),
        ("xyzzy: 3\n", "The keys are: base_result_dir"),
        ("optimizer.n_iterations: 0", "n_iterations belongs in the section optimizer: write it indented, below a line optimizer:"),
        ("xyzzy.seeed: 2", "seed belongs outside of sections"),
        ("xy.zzy: 2", "The keys are: optimizer.min_step_size"),
        ("optimizer.xyzzy: 2", "The keys are: optimizer.min_step_size"),
        ("optimizer[n_iterations]: 3", "n_iterations belongs in the section optimizer"),
        ("optimizer_n_iterations: 3", "n_iterations belongs in the section optimizer"),
        ("optimizer: {batch_size: 3}", "batch_size belongs outside of sections"),
        ("evaluation: {n_iterations: 3}", "Did you mean evaluation.iterations?"),
        ("optimiser: {n_iterations: 3}", "Did you mean optimizer?"),
        ("yes: 3", "unknown key yes. The keys are: base_result_dir"),
        ("optimizer: 3\n", "optimizer must be a section"),
        ("patch_lr: fast\n", "patch_lr must be a number in [0, 1]. Received: 'fast'"),
        ("patch_lr: .nan\n", "patch_lr must be a finite number in [0, 1]. Received: nan"),
        ("initial_lr: -0.033\n", "initial_lr must be a number above 0. Received: -0.033"),
        ("n_epochs: 0\n", "n_epochs must be a whole number of at least 1. Received: 0"),
        ("depth: 13\n", "the nearest are 8 and 14. Received: 13"),
        ("patch_shape: [65, 24, 3]\n", "at most [64, 64, 3]. Received: [65, 24, 3]"),
        ("patch_shape: [24, 24]\n", "patch_shape must be [height, width, 3]"),
        ("patch_shape: 24\n", "patch_shape must be a list"),
        ("image_size: 32\n", "Set n_stacks: 3"),
        ("normalization: groups\n", "normalization must be one of 'strip', 'group'"),
        ("jit_compile: maybe\n", "jit_compile must be one of 'auto', true, false. Received: 'maybe'"),
        ("label_smoothing: 0.999\n", "label_smoothing must be in [0, 0.995) for 200 classes"),
        ("dataset: demo\n", "image_size: 32 and n_classes: 10"),
        ("optimizer: {min_step_size: 0.2}\n", "min_step_size must not exceed"),
        ("evaluation: {attacks: [white_box, magic]}\n", "evaluation.attacks[1] must be one of 'white_box', 'gradient_free'"),
        ("evaluation: {attacks: [gradient_free]}\n", "evaluation.attacks must have white_box"),
        ("evaluation: {attacks: []}\n", "evaluation.attacks must be a list that is not empty. Received: []"),
        ("evaluation: {starts: [grey, grey]}\n", "must not name an item twice"),
        ("evaluation: {step_sizes: [0.1, 2]}\n", "evaluation.step_sizes[1] must be a number in (0, 1]. Received: 2"),
        ("evaluation: {max_images: 0}\n", "evaluation.max_images must be a whole number of at least 1, or null. Received: 0"),
        ("evaluation: {images_at_once: 8}\n", "evaluation.images_per_iteration must not exceed"),
        ("plain_baseline: true\nn_patches: 0\n", "needs n_patches above 0"),
        ("robust_evaluation: full\nn_patches: 0\nevaluation: {starts: [bank]}\n", "evaluation.starts: [bank] needs a bank"),
        ("unique_name: '{epochs}'\n", "unique_name may use {date}"),
        ("unique_name: ../elsewhere\n", "below base_result_dir"),
        ("unique_name: '{seed:300}'\n", "at most 255 bytes"),
        ("unique_name: 'run[1]'\n", "unique_name must be a path without brackets and backslashes"),
        (f"base_result_dir: {'x' * 300}\n", "base_result_dir must be a path without brackets and backslashes, each part of at most 255"),
        ("n_epochs: 010", "Received: '010'. Numbers are decimal, without leading zeros: write 10"),
        ("evaluation: {step_sizes: [0.1, 01]}", "evaluation.step_sizes[1] must be a number in (0, 1]. Received: '01'. Numbers are"),
        ("checkpoint_every_minutes: 10:30", "must be a number above 0. Received: '10:30'"),
        ("n_epochs: 1e3", "n_epochs must be a whole number of at least 1. Received: 1000.0"),
        ("unique_name: 2024", 'without quotes is a number. Put it in quotes: unique_name: "2024" (--set \'unique_name="2024"\')'),
        ("unique_name: 1e3", 'which without quotes is a number. Put it in quotes: unique_name: "..."'),
        ("base_result_dir: ~", "Received: null, which without quotes is no value. Put it in quotes"),
        ("deterministic: maybe", "deterministic must be true or false. Received: 'maybe'"),
        ("base_result_dir: ' '", "base_result_dir must be a string that is not empty"),
        ("initial_weights: None", "initial_weights must be a path. Write null for none. Received: 'None'"),
    ],
)
def test_faulty_configs_are_refused_in_words(read, tmp_path, text, words):
    with pytest.raises(UserError) as refusal:
        read(text)
    message = str(refusal.value)
    assert message.startswith(str(tmp_path / "config.yaml"))
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("seed: 0x10", 16),
        ("seed: &number 3\nn_epochs: *number", 3),
        ("initial_lr: 1", 1.0),
        ("weight_decay: 5e-7", 5e-7),
        ("plain_baseline: no", False),
        ("jit_compile: Yes", True),
        ("unique_name: 010", "010"),
        ("unique_name: 10:30", "10:30"),
        ("data_dir: 1_000", "1_000"),
        ("unique_name: 'null'", "null"),
        ("unique_name: !!str 2024", "2024"),
        ("initial_weights: ~", None),
    ],
)
def test_values_that_are_clear_are_accepted(tmp_path, read, line, value):
    config = read(f"{line}\n")
    found = getattr(config, line.partition(":")[0])
    assert found == value
    assert type(found) is type(value)
    config.to_yaml(tmp_path / "written.yaml")
    assert PatchTrainingConfig.from_yaml(tmp_path / "written.yaml") == config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("base_result_dir=run #1", "run #1"),
        ("base_result_dir=a: b", "a: b"),
        *((f"base_result_dir={text}", text) for text in ("!x", "*x", "- x", "|x", ",x", "-", "=", "---", "08", "true north", "1.2.3")),
        ('base_result_dir = "2024" ', "2024"),
        ("initial_weights=null", None),
        ("seed= 0x10 ", 16),
        ("deterministic=no", False),
        ("patch_shape=[8, 8, 3]", (8, 8, 3)),
        ("optimizer={n_iterations: 3}", OptimizerConfig(n_iterations=3)),
        ("unique_name={seed:03d}_{optimizer[n_iterations]}", "000_5"),
    ],
)
def test_overrides_are_what_the_command_line_says(read, override, value):
    assert getattr(read("n_epochs: 1\ninitial_weights: w.h5\n", override), override.partition("=")[0].strip()) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "--set takes key=value, such as --set optimizer.n_iterations=3. Received: 'seed'"),
        ("seed.x=1", "seed is not a section of the config"),
        ("unique_name=", "unique_name must be a string that is not empty"),
        ("seed=!!int 3", "Received: '!!int 3'"),
        ("optimizer=n_iterations: 3", "optimizer must be a section of keys. Received: 'n_iterations: 3'"),
        ("patch_shape=[8, 8", "the value is not valid YAML"),
        ("optimizer[n_iterations]=3", "--set optimizer.n_iterations="),
        ("n_ep\udcff=3", "unknown key n_ep?. "),  # bytes that are not UTF-8
        ("data_dir=a\udcff", "data_dir must be text without bytes that are not UTF-8"),
        ("optimizer.batch_size=3", "batch_size belongs outside of sections: write it unindented (on the command line --set batch_size="),
    ],
)
def test_overrides_are_refused_in_words(read, override, words):
    with pytest.raises(UserError) as refusal:
        read("seed: 1\n", override)
    assert words in str(refusal.value)
    assert "--set" in str(refusal.value)


def test_the_settings_that_a_moved_run_is_resumed_with_are_understood(tmp_path, monkeypatch):
    run = tmp_path / "é 😀 {x} #1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "ckpt-1.index").touch()
    PatchTrainingConfig(base_result_dir="elsewhere").to_yaml(run / "config.yaml")
    arguments = train.parse_arguments([str(run / "config.yaml"), "--resume"])
    with pytest.raises(UserError, match="Add --set") as refusal:
        train.refuse_another_directory(arguments, PatchTrainingConfig.from_yaml(arguments.config))
    words = shlex.split(str(refusal.value).partition("Add ")[2])
    assert words[::2] == ["--set", "--set"]
    assert PatchTrainingConfig.from_yaml(arguments.config, words[1::2]).result_dir == run


@pytest.fixture
def environment(monkeypatch):
    """Variables that paths name; GONE is not set."""
    monkeypatch.delenv("GONE", raising=False)
    for name, value in {"HOME": "/home/me", "JOB": "7/{a}", "EMPTY": "", "NESTED": "$JOB", "TILDE": "~/x"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/a", "/home/me/a"),
        ("$HOME/a", "/home/me/a"),
        ("${HOME}s/$JOB", "/home/mes/7/{a}"),
        ("$TILDE", "/home/me/x"),
        ("a/~", "a/~"),
        ("a$5$/$", "a$5$/$"),
    ],
)
def test_paths_are_expanded_once_and_for_all(environment, tmp_path, text, path):
    assert expand_path(text) == expand_path(path) == path
    config = PatchTrainingConfig(base_result_dir=text, data_dir=text, initial_weights=text)
    assert [config.base_result_dir, config.data_dir, config.initial_weights] == [path] * 3
    config.to_yaml(tmp_path / "written.yaml")
    assert f"data_dir: {path}\n" in (tmp_path / "written.yaml").read_text().replace("'", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$GONE/a", "the variable $GONE is not set, or in another's value. Set it, or write out what is meant"),
        ("${HOME:-a}", "the variable ${HOME:-a} is not set"),
        ("$NESTED", "the variable $JOB is not set, or in another's value"),
        ("$EMPTY", "the path '$EMPTY' is empty"),
        ("~no_such_user/a", "no home directory ~no_such_user is known"),
    ],
)
def test_paths_that_cannot_be_expanded_are_refused(environment, read, capsys, text, words):
    with pytest.raises(UserError) as refusal:
        read("seed: 1\n", f"data_dir={text}")
    assert f": data_dir: {text}: " in str(refusal.value).replace("the path '$EMPTY'", "$EMPTY:")
    assert words in str(refusal.value)
    assert train.main([text]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("mat-train: ")
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [("run_$JOB", "run_7_{a}"), ("${JOB}/{seed}", "7_{a}/0"), ("run_${{JOB}}", "run_${JOB}"), ("$5", "$5")],
)
def test_unique_name_may_use_variables(environment, tmp_path, read, text, name):
    config = read(f"unique_name: '{text}'\n")
    assert config.unique_name == name
    config.to_yaml(tmp_path / "written.yaml")
    assert PatchTrainingConfig.from_yaml(tmp_path / "written.yaml", resume=True) == config
    for refused, words in {"run_${GONE}": "unique_name: .*the variable .* is not set", "$EMPTY": "unique_name must .* below"}.items():
        with pytest.raises(UserError, match=words):
            read(f"unique_name: {refused}\n")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train, ["~/a"]),
        (evaluate, ["~/a", "--weights=~/a", "--output=$HOME/a", "--bank=~/a", "--patches-from=${HOME}/a"]),
        (benchmark, ["~/a", "--profile=~/a"]),
        (interruptions, ["--directory=~/a"]),
        (weights, ["--download=~/a"]),
    ],
)
def test_commands_expand_paths(environment, command, arguments):
    parsed = vars(command.parse_arguments(arguments))
    assert sum(value in ("/home/me/a", ["/home/me/a"]) for value in parsed.values()) == len(arguments)


TEXT = "# Größe\nseed: 3\noptimizer:\n  n_iterations: 2\nunique_name: 'größe'\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.rstrip().encode(),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    ],
    ids=["utf-8", "mark", "utf-16-le", "utf-16-be"],
)
def test_text_of_other_editors_is_read(read, content):
    config = read(content)
    assert (config.seed, config.optimizer.n_iterations, config.unique_name) == (3, 2, "größe")


def test_resuming_wants_a_name_that_stays(tmp_path):
    (tmp_path / "config.yaml").write_text("unique_name: run_{date}\n")
    with pytest.raises(UserError, match=r"such as results/RUN/config\.yaml"):
        PatchTrainingConfig.from_yaml(tmp_path / "config.yaml", resume=True)
    (tmp_path / "config.yaml").write_text("unique_name: run_{seed}_{{date}}\n")
    assert PatchTrainingConfig.from_yaml(tmp_path / "config.yaml", resume=True).unique_name == "run_0_{date}"


def test_configs_are_checked_and_immutable_however_they_are_made():
    assert PatchTrainingConfig(optimizer={"n_iterations": 2}) == PatchTrainingConfig(optimizer=OptimizerConfig(n_iterations=2))
    config = PatchTrainingConfig(patch_shape=[8, 8, 3], evaluation=EvaluationConfig(starts=["grey"]))
    assert (config.patch_shape, config.evaluation.starts, config.to_values()["patch_shape"]) == ((8, 8, 3), ("grey",), [8, 8, 3])
    assert PatchTrainingConfig(**config.to_values()) == config
    for make in (PatchTrainingConfig, config.replace):
        with pytest.raises(UserError, match="n_patches must be a whole number of at least 0. Received: -1"):
            make(n_patches=-1)
        with pytest.raises(UserError, match=r"unknown key optimizer.n_iteration. Did you mean optimizer.n_iterations\?"):
            make(optimizer={"n_iteration": 1})
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.seed = 1


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
    changed = {name for name, value in config if value != getattr(plain, name)}
    assert changed == {"n_patches", "plain_baseline", "unique_name"}
    assert (plain.n_patches, plain.unique_name) == (0, "run_plain")


DATASET = {"image_size": 96, "classes": ["a", "b, c", "é"]}


@pytest.fixture
def read_with_data(read, tmp_path):
    """A function from values of dataset.json, text of a config and overrides to the config, on a directory with that file."""

    def from_text(values, text="", *overrides):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "dataset.json").write_text(values if isinstance(values, str) else json.dumps(values))
        return read(f"data_dir: {tmp_path}/data\n{text}", *overrides)

    return from_text


def test_the_data_tell_image_size_and_classes_where_the_config_does_not(read, read_with_data, tmp_path):
    for text in ("", "n_classes: 3", "image_size: 96", "n_classes: 3\nimage_size: 96"):
        config = read_with_data(DATASET, text)
        assert (config.image_size, config.n_classes) == (96, 3)
        config.to_yaml(tmp_path / "written.yaml")
        assert PatchTrainingConfig.from_yaml(tmp_path / "written.yaml") == config
    assert read_with_data(DATASET | {"image_size_is_free": True}, "image_size: 64").image_size == 64
    assert PatchTrainingConfig.from_values({"data_dir": str(tmp_path / "data"), "unique_name": "{n_classes}"}).unique_name == "3"
    assert read(f"data_dir: {tmp_path}/elsewhere").n_classes == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "n_classes: 200",
            "n_classes is 200, and DIR/dataset.json lists 3 classes. Leave it out, set n_classes: 3, or set data_dir to the",
        ),
        (
            "image_size: 64",
            'image_size is 64, and DIR/dataset.json says 96. Leave it out, set image_size: 96, or allow every size by "image_size_',
        ),
        ("n_classes: x", "n_classes must be a whole number"),
    ],
)
def test_configs_that_contradict_the_data_are_refused_by_name(read_with_data, tmp_path, text, words):
    for arguments in ((text,), ("", text.replace(": ", "="))):
        with pytest.raises(UserError) as error:
            read_with_data(DATASET, *arguments)
        assert words.replace("DIR", f"{tmp_path}/data") in str(error.value)
        assert str(error.value).startswith(f"{tmp_path}/config.yaml")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"image_size": "a", "classes": []}',
        '{"image_size": 64, "classes": 3}',
        '{"image_size": 0, "classes": ["a", "b"]}',
        '{"image_size": 64, "classes": ["a"]}',
    ],
)
def test_a_damaged_dataset_file_is_named(read_with_data, tmp_path, content):
    with pytest.raises(UserError, match=r"data/dataset\.json: cannot be read \(.+\)\. Convert the data again, or remove the file"):
        read_with_data(content)
