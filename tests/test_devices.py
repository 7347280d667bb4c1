"""What the program knows of its device and its precision, and how it takes memory that does not suffice."""

import types

import pytest
import tensorflow as tf

from mat.cli import devices
from mat.cli.errors import UserError
from mat.robustness.measure import measure_robustness
from tests.conftest import trainer_of


@pytest.fixture
def gpus(monkeypatch):
    """A function that sets the visible GPUs, a list of their details."""

    def show(details):
        visible = [types.SimpleNamespace(name=f"GPU:{i}", details=each) for i, each in enumerate(details)]
        monkeypatch.setattr(devices.tf.config, "get_visible_devices", lambda _: visible)
        monkeypatch.setattr(devices.tf.config.experimental, "get_device_details", lambda gpu: gpu.details)

    return show


@pytest.mark.parametrize(
    ("cpu_info", "fast"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("processor : 0\n", None),
        (None, None),
    ],
)
def test_bfloat16_is_fast_where_the_cpu_has_instructions_for_it(tmp_path, monkeypatch, gpus, cpu_info, fast):
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    gpus([])
    if cpu_info is not None:
        (tmp_path / "cpuinfo").write_text(cpu_info)
    assert devices.bfloat16_is_fast() is fast
    assert devices.tensorfloat32_is_fast() is False


@pytest.mark.parametrize(("capability", "fast"), [((8, 0), True), ((7, 5), False), (None, None)])
def test_short_types_are_fast_on_gpus_from_ampere_on(gpus, capability, fast):
    gpus([{"compute_capability": (9, 0)}, {"compute_capability": capability} if capability else {}])
    assert devices.bfloat16_is_fast() is devices.tensorfloat32_is_fast() is fast


def test_auto_compiles_with_xla_on_gpus_only(gpus):
    for details, auto, name in ([], False, "CPU, "), ([{"device_name": "a GPU"}, {}], True, "a GPU, GPU:1"):
        gpus(details)
        assert (devices.use_xla("auto"), devices.use_xla(True), devices.use_xla(False)) == (auto, True, False)
        assert devices.device_name().startswith(name)


def test_precision_and_determinism_are_set(monkeypatch):
    determinism = []
    monkeypatch.setattr(devices.tf.config.experimental, "enable_op_determinism", lambda: determinism.append(True))
    for precision, rounds in (("tensorfloat32", True), ("float32", False), ("mixed_bfloat16", False)):
        devices.configure(precision=precision, deterministic=False)
        assert tf.config.experimental.tensor_float_32_execution_enabled() is rounds
    assert determinism == []
    devices.configure(precision="float32", deterministic=True)
    assert determinism == [True]


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, ""),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, ""),  # float32 stays float32
        ({"NVIDIA_TF32_OVERRIDE": "1"}, "NVIDIA_TF32_OVERRIDE=1"),
        ({"ONEDNN_DEFAULT_FPMATH_MODE": "STRICT", "DNNL_DEFAULT_FPMATH_MODE": ""}, ""),
        ({"TF_SET_ONEDNN_FPMATH_MODE": "BF16", "XLA_FLAGS": "--xla_dump_to=x"}, "TF_SET_ONEDNN_FPMATH_MODE=BF16"),
        ({"XLA_FLAGS": "--a=1 --xla_cpu_enable_fast_math=true"}, "XLA_FLAGS=--xla_cpu_enable_fast_math=true"),
        ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false --xla_cpu_enable_fast_math=0"}, ""),
    ],
)
def test_the_environment_that_changes_precision_is_told(monkeypatch, environment, text):
    for name in (*devices.PRECISION_VARIABLES, "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert devices.precision_overrides("float32") == text
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert "NVIDIA_TF32_OVERRIDE=0" in devices.precision_overrides("tensorfloat32")


def tf_error(name, text):
    return getattr(tf.errors, f"{name}Error")(None, None, text)


EXHAUSTED = tf_error("ResourceExhausted", "Graph error:\n\n{{function_node Conv2D}} OOM when allocating tensor with shape[9,9]\nHint: x")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (EXHAUSTED, "out of memory (OOM when allocating tensor with shape[9,9]). batch_size: 8"),
        (tf_error("Internal", "CUDNN_STATUS_ALLOC_FAILED\nin x"), "(CUDNN_STATUS_ALLOC_FAILED)"),
        (tf_error("Aborted", "Graph\nOperation received an exception:Status: 1, message: no"), "exception:Status: 1, message: no"),
        (
            tf_error("InvalidArgument", "Function x: Detected unsupported operations: CropAndResize"),
            "CropAndResize). Set jit_compile: false",
        ),
        (MemoryError("Unable to allocate 9 GiB"), "(Unable to allocate 9 GiB)"),
        (MemoryError(), "out of memory (Python can take no more). batch_size: 8"),
        (tf_error("ResourceExhausted", "/x/ckpt-1; No space left on device"), None),
        (tf_error("DataLoss", "/data/MUSHROOMS/train.tfrecord; corrupt"), None),
        (OSError("out of memory"), None),
    ],
)
def test_memory_and_what_xla_lacks_are_told_and_nothing_else(error, words):
    with pytest.raises(UserError if words else type(error)) as raised, devices.report_device_errors(lambda: "batch_size: 8"):
        raise error
    assert words is None or words in str(raised.value)


def test_training_and_evaluation_name_the_keys_that_take_memory(tiny_config, monkeypatch):
    def exhausted(*_, **__):
        raise EXHAUSTED

    trainer = trainer_of(tiny_config(n_epochs=1))
    run, weights = trainer.run, trainer.run.results.path / "weights.h5"
    run.step.train_on_batch = exhausted
    with pytest.raises(UserError, match=r"shape\[9,9\]\).* batch_size: 8, .* under another unique_name.* No checkpoint was written yet"):
        trainer.fit()
    weights.write_bytes(b"")
    monkeypatch.setattr("mat.robustness.measure.load_images", exhausted)
    with pytest.raises(UserError, match=r"evaluation.images_at_once: 128 images .* --resume"):
        measure_robustness(run.config, run.model, (run.train_records, run.validation_records), weights.parent / "report", weights=weights)
    monkeypatch.setattr("mat.run.create_model", exhausted)
    with pytest.raises(UserError, match=r"width: 1 and n_patches: 6 take more"):
        trainer_of(tiny_config(unique_name="another"))
