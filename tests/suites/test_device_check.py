"""What `doctor --check` finds, on a CPU that is compared with itself, and on one that computes something else."""

from __future__ import annotations

import pytest

from benchmarks.suites import device_check
from benchmarks.suites.device_check import Finding, difference, findings


@pytest.mark.slow
def test_a_cpu_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "BATCH", 8)
    monkeypatch.setattr(device_check, "_lower", lambda *_, **__: Finding("lower", "left out: it compiles"))
    by_name = {finding.what: finding for finding in findings("cpu", ["kd", "crd", "minilm"])}
    assert by_name["minilm"].text == "not checked: it is for text"
    assert {"fp32", "kd", "crd", "determinism", "memory", "throughput"} <= set(by_name)
    for what in ("fp32", "kd", "crd", "determinism", "memory"):
        assert not by_name[what].wrong, by_name[what]
    assert "within 0e+00" in by_name["kd"].text


def test_a_device_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([[2.0, 1.0], [2.0, 1.1], [2.0, 1.1]])
    monkeypatch.setattr(device_check, "losses", lambda *_, **__: next(values))
    finding = device_check._method("kd", None, None)  # type: ignore[arg-type]
    assert finding.wrong and str(finding) == "WRONG kd: losses 2, 1, on the CPU 2, 1.1"


def test_random_numbers_of_a_method_are_no_difference_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([[2.0, 1.0], [2.0, 1.1], [2.0, 0.9]])
    monkeypatch.setattr(device_check, "losses", lambda *_, **__: next(values))
    finding = device_check._method("crd", None, None)  # type: ignore[arg-type]
    assert not finding.wrong and "random numbers" in finding.text


def test_whatever_a_device_raises_is_a_finding() -> None:
    def check() -> Finding:
        raise RuntimeError("CUDA error:\nan illegal access")

    finding = device_check._guarded("kd", check)
    assert finding.wrong and str(finding) == "WRONG kd: RuntimeError: CUDA error: an illegal access"
    assert difference([1.0], [float("nan")]) == float("inf")
