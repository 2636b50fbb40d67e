"""What results are computed with: recorded, and refused where precision is not what a protocol says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.common import devices, environment
from kd_methods.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither what is remembered nor the caller's variables reach a test, and nothing of a test the next one."""
    for name in (*devices._PRECISION["cpu"], *environment._INSTRUCTIONS):
        monkeypatch.delenv(name, raising=False)
    devices.overruled.cache_clear()
    yield
    torch.set_float32_matmul_precision("highest")
    devices.overruled.cache_clear()


def test_fp32_is_measured() -> None:
    assert devices._fp32_error(CPU) < devices._FP32_ERROR / 10
    devices.check_precision(CPU)
    facts = environment.describe(CPU)["arithmetic"]
    assert facts["threads"] == torch.get_num_threads() and facts["processor"] and facts["limits"] == []
    assert facts["isa"] == torch.backends.cpu.get_cpu_capability()
    assert facts["fp32"] == "fp32" and facts["summary"].endswith("fp32 in full")


@pytest.mark.parametrize("name", devices._PRECISION["cpu"])
@pytest.mark.parametrize("value", ["BF16", "any", "STRICT", ""])
def test_a_variable_that_loosens_fp32_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    if value in ("STRICT", ""):
        devices.check_precision(CPU)
        return
    with pytest.raises(UserError, match=f"^{name}={value}: .*unset it"):
        devices.check_precision(CPU)
    assert f"overruled by {name}={value}" in environment.describe(CPU)["arithmetic"]["summary"]


def test_a_switch_of_torch_that_loosens_fp32_is_refused() -> None:
    if "avx512_bf16" not in environment.numerics(CPU)["instructions"]:
        pytest.skip("this processor computes fp32 in fp32 whatever the switch says")
    devices.overruled.cache_clear()
    torch.set_float32_matmul_precision("medium")
    with pytest.raises(UserError, match=r"mkldnn\.matmul\.fp32_precision = bf16: "):
        devices.check_precision(CPU)


@pytest.mark.parametrize("digits", [10, 7])  # of the mantissa: TensorFloat-32, bf16
def test_whatever_loosens_fp32_is_refused(monkeypatch: pytest.MonkeyPatch, digits: int) -> None:
    """Also what no variable and no switch tells of."""
    exact = torch.matmul

    def rounded(*matrices: torch.Tensor) -> torch.Tensor:
        if matrices[0].dtype == torch.float64:
            return exact(*matrices)
        short = [(x.view(torch.int32) + (1 << 22 - digits) >> 23 - digits << 23 - digits) for x in matrices]
        return exact(*(x.view(torch.float32) for x in short))

    monkeypatch.setattr(torch, "matmul", rounded)
    with pytest.raises(UserError, match=r"a product in fp32 is off by .e-04: "):
        devices.check_precision(CPU)


def test_limits_of_instructions_are_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So costs that were measured under them are costs of another machine."""
    for count, words in ((2, ", 2 threads"), (1, ", 1 thread")):  # one after the other in a process, as notebooks may
        torch.set_num_threads(count)
        assert environment.machine(CPU).endswith(words)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert environment.machine(CPU).endswith(", 1 thread, ONEDNN_MAX_CPU_ISA=AVX2")
    assert environment.describe(CPU)["arithmetic"]["limits"] == ["ONEDNN_MAX_CPU_ISA=AVX2"]


def test_processes_that_share_batches_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    first, second = torch.device("cuda"), torch.device("cuda", 1)
    for device, count in ((first, 3), (second, 2), (torch.device("cpu"), 9)):
        devices.check_enough(device, count)
    with pytest.raises(UserError, match="3 processes need a GPU each, and there are 2: --processes 2"):
        devices.check_enough(second, 3)
