"""What the program knows of its device."""

import pytest

from mat import devices


@pytest.mark.parametrize(
    ("cpu_info", "fast"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: amx_tile amx_bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("processor : 0\n", None),
        (None, None),
    ],
)
def test_bfloat16_is_fast_where_the_cpu_has_instructions_for_it(tmp_path, monkeypatch, cpu_info, fast):
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(devices.tf.config, "list_physical_devices", lambda _: [])
    if cpu_info is not None:
        (tmp_path / "cpuinfo").write_text(cpu_info)
    assert devices.bfloat16_is_fast() is fast


@pytest.mark.parametrize(("capability", "fast"), [((8, 0), True), ((9, 0), True), ((7, 5), False), (None, None)])
def test_bfloat16_is_fast_on_gpus_from_ampere_on(monkeypatch, capability, fast):
    monkeypatch.setattr(devices.tf.config, "list_physical_devices", lambda _: ["a GPU"])
    monkeypatch.setattr(
        devices.tf.config.experimental, "get_device_details", lambda _: {"compute_capability": capability} if capability else {}
    )
    assert devices.bfloat16_is_fast() is fast


def test_auto_compiles_with_xla_on_gpus_only(monkeypatch):
    monkeypatch.setattr(devices.tf.config, "list_physical_devices", lambda _: [])
    assert (devices.use_xla("auto"), devices.use_xla(True), devices.use_xla(False)) == (False, True, False)
    monkeypatch.setattr(devices.tf.config, "list_physical_devices", lambda _: ["a GPU"])
    assert (devices.use_xla("auto"), devices.use_xla(True), devices.use_xla(False)) == (True, True, False)
