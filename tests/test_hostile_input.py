"""Files made to do harm, and damaged ones: each is used or refused in words, in bounded time and memory, and touches nothing else."""

import dataclasses
import datetime
import io
import json
import os
import pathlib
import re
import resource
import select
import stat
import struct
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mat.cli.errors import UserError
from mat.cli.text import format_value
from mat.cli.yaml_reader import MAX_BYTES, apply_override
from mat.config import EvaluationConfig, OptimizerConfig, PatchTrainingConfig
from mat.data.convert import convert
from mat.models import create_model, load_weights, save_weights
from mat.models.weights import MAX_ENTRIES
from mat.robustness.store import read_bank, read_report
from tests.conftest import SMALL
from tests.test_archives import FILES, JPEG, archive, folder

ROOT = pathlib.Path(__file__).parent.parent
MAX_SECONDS = 10
MAX_MEMORY = 1 << 30  # bytes above what the process took before
MAX_MESSAGE = 2000  # characters; the longest names every key

generated = settings(
    derandomize=True,
    database=None,
    deadline=datetime.timedelta(seconds=MAX_SECONDS),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def peak_memory():
    """The most that this process ever took, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refusal(function, *arguments):
    """The message that a call is refused with, None if it is not; a message is a short line."""
    try:
        function(*arguments)
    except UserError as error:
        assert len(str(error)) < MAX_MESSAGE
        assert str(error).isprintable()
        return str(error)
    return None


def kind_of_value(value):
    """The name of a test's parameter; the values themselves are too long."""
    return type(value).__name__


# Configs.

KEYS = [f.name for cls in (PatchTrainingConfig, OptimizerConfig, EvaluationConfig) for f in dataclasses.fields(cls)]
LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {b: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.fixture
def read(tmp_path):
    """A function from the text or bytes of a config file, and overrides, to the message that it is refused with."""

    def from_content(content, *overrides):
        path = tmp_path / "config.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return refusal(PatchTrainingConfig.from_yaml, path, overrides)

    return from_content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LAUGHS, "more than 10000 values, with the aliases written out"),
        (MERGES, "more than 10000 values, with the aliases written out"),
        ("seed: [" + "0," * 20_000 + "]", "more than 10000 values"),
        ("patch_shape: [&a " + "x" * 200_000 + ", *a" * 9000 + "]", "patch_shape must be [height, width, 3]"),
        ("&a {seed: *a}", "the alias stands for a value that it is itself a part of"),
        ("&a {<<: *a}", "the alias stands for a value that it is itself a part of"),
        ("seed: " + "[" * 100_000, "nested too deeply"),
        ("seed: " + "{a: " * 60_000, "nested too deeply"),
        ("? " * 100_000, "nested too deeply"),
        ("seed: " + "9" * 5000, "a number of more than 100 characters"),
        ("seed: 0x" + "f" * 5000, "a number of more than 100 characters"),
        ("seed: 1" + ":59" * 80_000, "a number of more than 100 characters"),
        ("initial_lr: 1" + ":59" * 80_000 + ".5", "a number of more than 100 characters"),
        ("seed: " + "9" * 99, "seed must be in [0, 4294967295]. Received: 999"),
        ("initial_lr: " + "9" * 99, "initial_lr must be a number"),
        ("n_classes: .inf", "n_classes must be a whole number in [2, 1000000]. Received: .inf"),
        ("initial_lr: .nan", "initial_lr must be in (0, 1000]. Received: nan"),
        ("seed: 2001-01-01", "Received: 2001-01-01"),
        ('seed: !!null "a\\e[2J"', "Received: a?[2J"),
        ("seed: " + "0" * 5000 + "9", "seed must be a whole number"),
        ("seed: " + "0" * 99, "write 0"),
        ("? optimizer" + ".n" * 50_000 + "\n: 1", "unknown key optimizer.n.n"),
        ("data_dir: " + "$A{" * 1000 + "}", "data_dir"),
        ('data_dir: "~a\\0b"', "data_dir must be a path of printable text"),
        ('data_dir: "${\\ud800}"', "data_dir must be a path of printable text"),
        ("data_dir: " + "~" * 255, "no home directory ~~~"),
        ("seed: 2001-13-01", "does not fit its tag !!timestamp"),
        ("seed: !!binary aGFsbG8=", "Received: b'hallo'"),
        ("patch_shape: !!set {24, 3}", "patch_shape must be a list. Received: {"),
        ("patch_shape: !!omap [a: 24, b: 24, c: 3]", "patch_shape must be [height, width, 3]"),
        ("evaluation: {starts: [[grey], {a: b}]}", "evaluation.starts[0] must be one of"),
        ("seed: !!int {a: 1}", "expected a scalar node"),
        ('"\\UFFFFFFFF": 1', "not a valid config"),
        ('"\\e[2J\\ud800": 1', "unknown key ?[2J?"),
        ("seed: !a%1b%0a%5b 1", "the tag !a? [ is not allowed"),
        ("x" * 1000 + ": 1", "unknown key xxx"),
        (b"seed: \x00", "a zero, as of UTF-16 without a byte-order mark, at byte 6. Save it as UTF-8"),
        (b"seed: \x1b", "unacceptable character #x001b"),
        ("seed: 1\n---\nseed: 2\n", "but found another document"),
        ("%TAG !! tag:else,1:\n---\nseed: !!int 1", "the tag tag:else,1:int is not allowed"),
        ("#" * (MAX_BYTES + 1), "more than 262,144 bytes, so not a config"),
        ("seed: 4294967295\nunique_name: '{seed:{seed}}'", "'{seed}' is too wide"),
        ("unique_name: '{seed!r:>99999999999}'", "too wide"),
        ("unique_name: '{initial_lr:.99999999999f}'", "too wide"),
        ("unique_name: '{optimizer.__class__}'", "'optimizer.__class__' is not such a name"),
        ("unique_name: '" + "{data_dir}/" * 1000 + "'", "unique_name must be a path of printable text"),
        ("data_dir: " + "/".join(["x" * 200] * 30), "data_dir must be a path of printable text"),
    ],
    ids=kind_of_value,
)
def test_hostile_configs_are_refused_in_words(read, content, words):
    before = peak_memory()
    message = read(content)
    assert words in message
    assert peak_memory() - before < MAX_MEMORY


def test_harmless_anchors_merges_and_marks_are_accepted(read, tmp_path):
    assert read("seed: &seed 3\nn_epochs: *seed\noptimizer: {<<: {n_iterations: 2}, n_iterations: 3}\n") is None
    config = PatchTrainingConfig.from_yaml(tmp_path / "config.yaml")
    assert (config.n_epochs, config.optimizer.n_iterations) == (3, 3)
    assert read(b"\xef\xbb\xbfseed: 1\n") is None
    assert read("optimizer: &a {<<: &b {n_iterations: 1}, n_iterations: 2}\nevaluation: {<<: {iterations: 9}}\n") is None


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b"])
def test_what_is_no_config_file_is_refused(path):
    with pytest.raises(UserError, match="so not a config|not a valid config"):
        PatchTrainingConfig.from_yaml(path)


@pytest.mark.parametrize(
    "override",
    ["seed=" + "[" * 50_000, "seed=[&a [*a]]", "seed=" + "9" * 9999, 'seed="\\UFFFFFFFF"', "seed=\0", "seed=[!!python/name:os.system]"],
    ids=kind_of_value,
)
def test_hostile_overrides_are_refused(override):
    assert "--set" in refusal(apply_override, {}, override)


@pytest.mark.parametrize("override", ["seed=&a [*a]", "seed=!!python/name:os.system", "seed=- [", "seed={a: !x b}"], ids=kind_of_value)
def test_overrides_are_no_programs(read, override):
    assert "--set" in read("n_epochs: 1", override)


def test_hostile_overrides_make_no_long_message(read):
    assert "--set" in read("seed: 1", "a" * 100_000 + "=1")
    assert "--set" in read("seed: 1", ".".join("a" * 50_000) + "=1")


@pytest.mark.parametrize(
    "value",
    [10**5000, [[10**5000]], "x" * 10**6, b"x" * 10**6, {i: [i] * 1000 for i in range(1000)}, set(range(10**5))],
    ids=kind_of_value,
)
def test_any_value_is_shown_short(value):
    assert len(format_value(value)) <= 80
    for keys in ({"seed": value}, {"initial_lr": value}, {"patch_shape": value}, {"data_dir": value}, {"optimizer": value}):
        with pytest.raises(UserError):
            PatchTrainingConfig(**keys)


VALUES = st.sampled_from(
    ["1", "-1", "0x1F", "0b1", "017", "1:30", "1e3", "1e999", ".inf", "-.inf", ".nan", "~", "null", "true", "NO", "on", "2001-01-01"]
    + [
        "''",
        '"\\x1b"',
        '"\\ud800"',
        "{}",
        "[]",
        "[24, 24, 3]",
        "{a: b}",
        "-",
        "?",
        ":",
        "|",
        ">",
        "%41",
        "@",
        "`",
        "&",
        "*",
        "<<",
        "=",
        "a.b",
    ]
    + ["!!int ", "!!str ", "!!set ", "!!binary ", "!!python/object:os.system ", "!x ", "{seed}", "'{'", "'{seed:{seed}}'", "\\"]
)
SCALARS = st.one_of(VALUES, st.text(max_size=8), st.integers().map(str), st.floats().map(str), st.integers(0, 4).map("&a{}".format))
FRAGMENTS = st.recursive(
    SCALARS | st.integers(0, 4).map("*a{} ".format),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(st.one_of(st.sampled_from([*KEYS, "<<", "? a"]), inner), inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
        st.tuples(st.sampled_from(["!!int ", "!!map ", "!!seq ", "!!omap ", "!!python/tuple ", "&a0 ", "&a1 ", "\n  "]), inner).map(
            "".join
        ),
        st.tuples(inner, st.integers(1, 400)).map(lambda pair: "[" * pair[1] + pair[0] + "]" * pair[1]),
    ),
    max_leaves=8,
)
DOCUMENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([*KEYS, "<<", "evaluation", "optimizer"]), FRAGMENTS).map(": ".join),
        st.tuples(st.sampled_from(["  ", "- ", "? ", ": ", "--- ", "%YAML ", "# "]), FRAGMENTS).map("".join),
    ),
    max_size=6,
).map("\n".join)
RIGHT = ["seed: 0x1F", "deterministic: NO", "unique_name: '010'", "data_dir: ~/a", "optimizer: {n_iterations: 0}", "jit_compile: on"]
RIGHT_DOCUMENTS = st.lists(st.sampled_from(RIGHT), unique=True).map("\n".join)
SPLICES = st.lists(
    st.tuples(st.integers(0, 3600), st.integers(0, 20), st.one_of(st.binary(max_size=6), VALUES.map(str.encode))), max_size=6
)


def spliced(content, splices):
    """Bytes with some ranges replaced."""
    for position, length, replacement in splices:
        content = content[:position] + replacement + content[position + length :]
    return content


def test_generated_configs_are_accepted_or_refused(read):
    outcomes = []
    before = peak_memory()
    published = re.sub(rb"#.*", b"", (ROOT / "configs" / "mat.yaml").read_bytes())

    @settings(generated, max_examples=1200)
    @given(
        st.one_of(
            *(DOCUMENTS, DOCUMENTS, FRAGMENTS, RIGHT_DOCUMENTS, st.text(), st.binary()),
            SPLICES.map(lambda splices: spliced(published, splices)),
        )
    )
    def try_one(content):
        outcomes.append(read(content))

    try_one()
    assert len(outcomes) >= 1000
    assert outcomes.count(None) > 100
    assert len(set(outcomes)) > 200
    assert peak_memory() - before < MAX_MEMORY


# Weights.


@pytest.fixture(scope="module")
def model():
    return create_model(PatchTrainingConfig(**SMALL))


@pytest.fixture
def weights(tmp_path, model):
    """A file of the model's weights."""
    save_weights(model, tmp_path / "weights.h5")
    return tmp_path / "weights.h5"


KERNEL = "conv2d/conv2d/kernel:0"  # float32 [3, 3, 3, 16]


def put(file, name, **arguments):
    """Replace a dataset."""
    del file[name]
    file.create_dataset(name, **arguments)


def external_storage(file):
    raw = pathlib.Path(file.filename).with_name("raw")
    raw.write_bytes(bytes(3 * 3 * 3 * 16 * 4))
    put(file, KERNEL, shape=(3, 3, 3, 16), dtype="f4", external=[(str(raw), 0, raw.stat().st_size)])


def virtual(file):
    layout = h5py.VirtualLayout((3, 3, 3, 16), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "kernel", (3, 3, 3, 16))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def link(kind, *arguments):
    def damage(file):
        del file["conv2d"]
        file["conv2d"] = kind(*arguments)

    return damage


def external_keras_3(file):
    del file.attrs["layer_names"]
    file["layers"] = h5py.ExternalLink("/dev/zero", "/layers")


def array_for_group(file):
    put(file, "conv2d", data=np.zeros(3))


def group_for_array(file):
    del file[KERNEL]
    file.create_group(KERNEL)


def cycle(file):
    del file["conv2d/conv2d"]
    file["conv2d/conv2d"] = file["conv2d"]


def references(file):
    put(file, KERNEL, shape=(3, 3, 3, 16), dtype=h5py.ref_dtype)


SHAPE = (3, 3, 3, 16)
NAMES = "layer_names is not a list of names of fixed length"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: put(file, KERNEL, shape=SHAPE, dtype="S8"), "kernel:0 is not of floating-point numbers"),
        (lambda file: put(file, KERNEL, shape=SHAPE, dtype=h5py.string_dtype()), "kernel:0 is not of floating-point numbers"),
        (lambda file: put(file, KERNEL, shape=SHAPE, dtype="i4"), "kernel:0 is not of floating-point numbers"),
        (lambda file: put(file, KERNEL, shape=SHAPE, dtype=[("a", "f4")]), "kernel:0 is not of floating-point numbers"),
        (lambda file: put(file, KERNEL, shape=SHAPE, dtype=h5py.vlen_dtype("f4")), "kernel:0 is not of floating-point numbers"),
        (references, "kernel:0 is not of floating-point numbers"),
        (lambda file: put(file, KERNEL, shape=SHAPE, dtype="f4"), "does not have the values of its shape"),
        (lambda file: put(file, KERNEL, shape=(1 << 40, 3, 3, 16), dtype="f4", fillvalue=1.0), "does not have the values of its shape"),
        (lambda file: put(file, KERNEL, shape=(1 << 40,) + SHAPE[1:], dtype="f4", chunks=SHAPE), "is in chunks, compressed"),
        (lambda file: put(file, KERNEL, data=np.zeros((4000, 1000)), compression="gzip"), "is in chunks, compressed"),
        (lambda file: put(file, KERNEL, data=h5py.Empty("f4")), "not a weights file"),
        (lambda file: put(file, KERNEL, data=np.zeros((3, 3, 3, 17))), "conv2d has the shapes"),
        (lambda file: put(file, KERNEL, data=np.zeros((1,) * 32)), "conv2d has the shapes"),
        (external_storage, "is in chunks, compressed or in another file"),
        (virtual, "is in chunks, compressed or in another file"),
        (link(h5py.ExternalLink, "/dev/zero", "/conv2d"), "conv2d is missing, or a link"),
        (link(h5py.SoftLink, "/dense"), "conv2d is missing, or a link"),
        (external_keras_3, "layers is missing, or a link"),
        (array_for_group, "conv2d is not a group"),
        (group_for_array, "kernel:0 is not a dataset"),
        (cycle, "kernel:0 is missing, or a link"),
        (lambda file: file.attrs.create("layer_names", 1.5), NAMES),
        (lambda file: file.attrs.create("layer_names", ["conv2d"], dtype=h5py.string_dtype()), NAMES),
        (lambda file: file.attrs.create("layer_names", np.zeros(7000)), NAMES),
        (lambda file: file.attrs.create("layer_names", np.array([b"a" * 60_000])), "aaa"),
        (lambda file: file.attrs.create("layer_names", np.array([b"\xff\x1b"])), "not a weights file"),
        (lambda file: file.attrs.create("layer_names", np.array([b"\x1b[2J\n"])), "?[2J is missing"),
        (lambda file: file.attrs.create("layer_names", np.array([b"a"] * (MAX_ENTRIES + 1))), "more than 20,000 layers or arrays"),
        (lambda file: file.attrs.create("layer_names", np.array([b"dense"] * (MAX_ENTRIES // 2 + 1))), "more than 20,000 layers or arrays"),
    ],
    ids=kind_of_value,
)
def test_hostile_weights_are_refused_in_words(model, weights, damage, words):
    before, memory = model.get_weights(), peak_memory()
    with h5py.File(weights, "r+") as file:
        damage(file)
    assert words in refusal(load_weights, model, weights)
    assert peak_memory() - memory < MAX_MEMORY
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_of_other_real_types_are_accepted(model, weights):
    with h5py.File(weights, "r+") as file:
        put(file, KERNEL, data=np.full(SHAPE, 0.5, ">f8"))
    load_weights(model, weights)
    np.testing.assert_array_equal(model.get_layer("conv2d").get_weights()[0], np.full(SHAPE, 0.5, np.float32))


def test_files_of_another_size_and_no_files_are_refused(model, weights):
    assert "no such weights file" in refusal(load_weights, model, "/dev/zero")
    os.truncate(weights, 1 << 40)  # takes no space
    assert "1,099,511,627,776 bytes" in refusal(load_weights, model, weights)


def broken_global_heap(content):
    """The free space of the heap of strings is 0 bytes long: HDF5's library looks for its end for ever."""
    start = content.index(b"GCOL")
    position = start + 16
    while struct.unpack_from("<H", content, position)[0]:
        position += 16 + -(-struct.unpack_from("<Q", content, position + 8)[0] // 8) * 8
    return content[: position + 8] + bytes(8) + content[position + 16 :]


def filtered_fractal_heap(content):
    """The heap of names is said to be compressed."""
    position = content.index(b"FRHP") + 7
    return content[:position] + b"\x0c" + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"), [(broken_global_heap, "a heap of its strings is damaged"), (filtered_fractal_heap, "its names are compressed")]
)
def test_heaps_that_hdf5_fails_on_are_refused(model, tmp_path, damage, words):
    path = tmp_path / "heaps.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["names"] = ["conv2d", "dense"]
        for i in range(50):
            file.create_group(f"layers/conv2d_{i}/vars")
    assert "these weights are not of this network" in refusal(load_weights, model, path)
    path.write_bytes(damage(path.read_bytes()))
    assert words in refusal(load_weights, model, path)


READER = """
import json, resource, sys
from mat.config import PatchTrainingConfig
from mat.cli.errors import UserError
from mat.models import create_model, load_weights
model = create_model(PatchTrainingConfig(**json.loads(sys.argv[1])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
for path in sys.stdin:
    try:
        load_weights(model, path.strip())
        message = None
    except UserError as error:
        message = str(error)
    print(json.dumps([message, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), flush=True)
"""


@pytest.fixture
def reader():
    """A process that answers the path of a weights file with a message or null, and its memory: HDF5's library is native code."""
    command = [sys.executable, "-c", READER, json.dumps(SMALL)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


MUTATIONS = st.one_of(
    st.integers(0, 7),
    st.sampled_from([b"\xff", b"\xff" * 8, bytes(4), bytes(8), bytes(16), bytes(64), bytes(512)]),
    st.binary(min_size=1, max_size=32),
    st.tuples(st.integers(0, 1 << 16), st.integers(1, 64)),
    st.none(),
)


def mutate(content, position, mutation):
    """A bit flipped, a range overwritten with bytes or with another (position, length) of the same file, or all that follows cut off."""
    if mutation is None:
        return content[:position]
    if isinstance(mutation, int):
        mutation = bytes([content[position] ^ 1 << mutation]) if position < len(content) else b""
    elif isinstance(mutation, tuple):
        mutation = content[mutation[0] :][: mutation[1]]
    return content[:position] + mutation + content[position + len(mutation) :]


def test_mutated_weights_are_accepted_or_refused(model, weights, reader):
    """Most bytes of a file are weights, which may be any number: what is mutated are the others."""
    keras_3 = weights.with_name("model.weights.h5")
    model.save_weights(keras_3)
    contents, positions = {}, {}
    for path in (weights, keras_3):
        contents[path] = path.read_bytes()
        structure = np.ones(len(contents[path]), bool)

        def leave_out_values(_, item, structure=structure):
            if isinstance(item, h5py.Dataset):
                structure[item.id.get_offset() :][: item.id.get_storage_size()] = False

        with h5py.File(path) as file:
            file.visititems(leave_out_values)
        positions[path] = np.flatnonzero(structure).tolist()
    outcomes = []
    mutated = weights.with_name("mutated.h5")
    baseline = int(reader.stdout.readline()) * 1024

    @settings(generated, max_examples=400)
    @given(st.sampled_from([weights, keras_3]), st.lists(st.tuples(st.integers(0, 1 << 20), MUTATIONS), min_size=1, max_size=4))
    def try_one(path, mutations):
        content = contents[path]
        for position, mutation in mutations:
            content = mutate(content, positions[path][position % len(positions[path])], mutation)
        assume(content != contents[path])
        mutated.write_bytes(content)
        reader.stdin.write(f"{mutated}\n".encode())
        reader.stdin.flush()
        assert select.select([reader.stdout], [], [], MAX_SECONDS)[0], "no answer in time"
        answer = reader.stdout.readline()
        assert answer, "the process died"
        message, memory = json.loads(answer)
        assert message is None or (len(message) < MAX_MESSAGE and message.isprintable())
        assert memory * 1024 - baseline < MAX_MEMORY
        outcomes.append(message)

    try_one()
    assert len(outcomes) >= 200
    assert outcomes.count(None) > 20
    assert len(set(outcomes)) > 10


# Sources of the converter.


def test_the_plain_source_is_accepted(tmp_path):
    assert convert(archive(tmp_path / "a.zip", FILES), tmp_path / "a") == {"train": 1, "validation": 1, "test": 1}
    assert convert(folder(tmp_path / "folder", FILES), tmp_path / "b") == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("write", [folder, archive])
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"val/val_annotations.txt": b"../../../outside n1 0 0 9 9\n"}, "val/images/../../../outside is missing"),
        ({"val/val_annotations.txt": b"/etc/passwd n1 0 0 9 9\n"}, "val/images//etc/passwd is missing"),
        ({"wnids.txt": b"../..\n"}, "train/../../../.._boxes.txt is missing"),
        ({"wnids.txt": b"n1\n/etc\n"}, "train//etc//etc_boxes.txt is missing"),
        ({"wnids.txt": b"\x1b[2J\0\n"}, "wnids.txt is not UTF-8 or UTF-16 text (a zero"),
        ({"wnids.txt": b"n" * 100_000}, "nnn... is missing"),
        ({"wnids.txt": b"n\n" * (1 << 23)}, "wnids.txt has more than 8,388,608 bytes"),
        ({"val/val_annotations.txt": FILES["val/val_annotations.txt"] * 2}, "lists val_0.JPEG twice"),
        ({"val/val_annotations.txt": b"val_0.JPEG n1 0 0 9 9223372036854775808\n"}, "not `image wnid xmin ymin xmax ymax`"),
        ({"val/val_annotations.txt": b"val_0.JPEG n1 0 0 9 " + b"9" * 5000}, "not `image wnid xmin ymin xmax ymax`"),
        ({"train/n1/n1_boxes.txt": b"n1_0.JPEG -1 0 9 9\n"}, "not `image xmin ymin xmax ymax`"),
        ({"test/images/test_0.JPEG": bytes((1 << 25) + 1)}, "test_0.JPEG has more than 33,554,432 bytes"),
    ],
    ids=kind_of_value,
)
def test_hostile_sources_are_refused_in_words(tmp_path, write, files, words):
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    before, memory = set(tmp_path.rglob("*")), peak_memory()
    source = write(tmp_path / "in" / "source", FILES | files)
    assert words in refusal(convert, source, tmp_path / "out")
    assert peak_memory() - memory < MAX_MEMORY
    assert {path for path in set(tmp_path.rglob("*")) - before if source not in (path, *path.parents)} <= {tmp_path / "out"}


@pytest.mark.parametrize(
    "name",
    ["test/images/1²2.JPEG", "test/images/" + "9" * 5000 + ".JPEG", "../../../elsewhere.JPEG", "/absolute.JPEG"],
    ids=kind_of_value,
)
def test_odd_names_do_no_harm(tmp_path, name):
    counts = convert(archive(tmp_path / "a.zip", FILES | {name: JPEG}), tmp_path / "in" / "out")
    assert counts["test"] == 1 + name.startswith("test/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "in"]


def test_links_in_folders_stay_inside(tmp_path):
    root = folder(tmp_path / "folder", FILES)
    (tmp_path / "outside.JPEG").write_bytes(b"secret")
    (root / "test/images/test_1.JPEG").symlink_to(root / "val/images/val_0.JPEG")
    (root / "test/images/test_2.JPEG").symlink_to("test_2.JPEG")  # to itself
    (root / "test/images/test_3.JPEG").symlink_to("/dev/zero")
    assert convert(root, tmp_path / "out")["test"] == 2
    (root / "test/images/test_4.JPEG").symlink_to(tmp_path / "outside.JPEG")
    assert "test/images/test_4.JPEG is a link to a file outside" in refusal(convert, root, tmp_path / "other")


def test_a_link_to_a_folder_serves_as_source(tmp_path):
    (tmp_path / "link").symlink_to(folder(tmp_path / "folder", FILES))
    assert convert(tmp_path / "link", tmp_path / "out")["test"] == 1


def edited(path, old, new):
    """Replace bytes of an archive's directory."""
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    assert old in content[start:]
    path.write_bytes(content[:start] + content[start:].replace(old, new))


def sizes(path):
    """(packed, unpacked) bytes of test_0.JPEG as an archive's directory states them."""
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("test/images/test_0.JPEG")
    return struct.pack("<2L", info.compress_size, info.file_size)


def test_links_duplicates_and_other_methods_in_archives_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", FILES, attributes={"test/images/test_0.JPEG": stat.S_IFLNK | 0o777})
    assert "test_0.JPEG is a link" in refusal(convert, path, tmp_path / "out")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(archive(path, FILES), "a") as file:
        file.writestr("words.txt", b"other")
    assert "words.txt is in it twice" in refusal(convert, path, tmp_path / "out")
    for method, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")):
        message = refusal(convert, archive(path, FILES, method=method), tmp_path / "out")
        assert f"is compressed with {name}, not Deflate" in message
    assert not (tmp_path / "out").exists()


def test_archive_bombs_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", FILES | {f"test/images/test_{i}.JPEG": bytes(1 << 25) for i in range(3)})
    with zipfile.ZipFile(path) as file:
        packed = file.getinfo("test/images/test_1.JPEG").compress_size
    edited(path, struct.pack("<2L", packed, 1 << 25), struct.pack("<2L", packed, 1 << 29))
    others = sum(len(content) for name, content in FILES.items() if not name.startswith("test"))
    assert f"unpacks to {3 * (1 << 29) + others:,} bytes" in refusal(convert, path, tmp_path / "out")
    path = archive(tmp_path / "b.zip", FILES | {"test/images/test_0.JPEG": bytes(1 << 26)})
    edited(path, sizes(path), sizes(path)[:4] + struct.pack("<L", 5))  # says it has 5 bytes
    assert "test_0.JPEG cannot be read (Bad CRC-32" in refusal(convert, path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_archives_with_a_huge_directory_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    size = (1 << 25) + 100
    path.write_bytes(bytes(size) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, size, 0, 0))
    assert "its directory takes more than 33,554,432 bytes" in refusal(convert, path, tmp_path / "out")


def test_unreadable_members_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", FILES)
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    for offset, value, words in (
        (8, b"\x01\x00", "is encrypted"),
        (8, b"\x20\x00", "compressed patched data"),
        (6, b"\xff\x00", "zip file version 25.5"),
        (8, b"\x00\x08", None),  # names in UTF-8, which these are
        (46, b"\xff\xff", "File name in directory"),
        (16, b"\x00\x00", "Bad CRC-32"),
        (42, b"\xff\xff", "cannot be read"),
    ):
        path.write_bytes(content[: start + offset] + value + content[start + offset + 2 :])
        message = refusal(convert, path, tmp_path / f"out{offset}{value[0]}")
        assert message is None if words is None else words in message or "no wnids.txt" in message
    names = content.replace(b"words.txt", b"\xff" * 9)
    position = names.index(b"PK\x01\x02")
    second = names.index(b"PK\x01\x02", position + 4)
    path.write_bytes(names[: second + 8] + b"\x00\x08" + names[second + 10 :])
    assert "not a readable zip archive ('utf-8' codec" in refusal(convert, path, tmp_path / "out")


def test_mutated_archives_are_accepted_or_refused(tmp_path):
    buffer = io.BytesIO()
    archive(buffer, FILES)
    whole = buffer.getvalue()
    outcomes = []
    path = tmp_path / "a.zip"

    @settings(generated, max_examples=300)
    @given(st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=4))
    def try_one(splices):
        path.write_bytes(spliced(whole, splices))
        out = tmp_path / f"out{len(outcomes)}"
        outcomes.append(refusal(convert, path, out))
        assert outcomes[-1] is None or not out.exists() or not list(out.iterdir())

    try_one()
    assert len(set(outcomes)) > 5


# Banks and reports of other runs.


@pytest.mark.parametrize("shape", ["(8589934592, 1, 1, 3)", f"({10**30}, 1, 1, 3)"])
def test_banks_of_huge_shapes_are_refused(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "patches.npz", "w") as archive:
        archive.writestr("patches.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
    assert "not a bank" in refusal(read_bank, tmp_path / "patches.npz", 4)


def test_a_report_that_is_nested_too_deeply_is_none(tmp_path):
    (tmp_path / "report.json").write_text("[" * 100_000)
    assert read_report(tmp_path) is None
