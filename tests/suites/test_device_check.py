"""What `doctor --check` finds, on a CPU that is compared with itself, and on one that computes something else."""

from __future__ import annotations

import pytest

from benchmarks.suites import device_check
from benchmarks.suites.device_check import Finding, difference, findings
from kd_methods.errors import UserError


@pytest.mark.slow
def test_a_cpu_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "BATCH", 8)
    monkeypatch.setattr(device_check, "_lower", lambda *_, **__: Finding("lower", "left out: it compiles"))
    by_name = {finding.what: finding for finding in findings("cpu", ["kd", "crd", "vitkd"])}
    assert {"fp32", "kd", "crd", "vitkd", "determinism", "memory", "throughput"} <= set(by_name)
    for what in ("fp32", "kd", "crd", "vitkd", "determinism", "memory"):
        assert not by_name[what].wrong, by_name[what]
    assert "within 0e+00" in by_name["kd"].text and "within 0e+00" in by_name["vitkd"].text


@pytest.mark.slow
def test_texts_and_detection_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of detection a method for two stages, and one for one stage; whose samplers draw from the same numbers here."""
    pytest.importorskip("transformers", reason="the extra [text] is not installed")
    pytest.importorskip("mmdet", reason="the extra [detection] is not installed")
    monkeypatch.setattr(device_check, "BATCH", 8)
    for kind in ("_lower", "_determinism", "_memory", "_throughput"):
        monkeypatch.setattr(device_check, kind, lambda *_, **__: Finding("other", "left out"))
    names = ["minilm", "pkd_pearson", "ld"]
    by_name = {finding.what: finding for finding in findings("cpu", names)}
    assert [str(by_name[name]) for name in names] == [
        f"ok    {name}: losses as on the CPU, within 0e+00" for name in names
    ]


def test_what_overrules_fp32_is_the_first_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last, where nothing else would be what it says."""
    monkeypatch.setattr(device_check, "overruled", lambda _: ("NVIDIA_TF32_OVERRIDE=1",))
    assert [str(finding) for finding in findings("cpu")] == ["WRONG fp32: NVIDIA_TF32_OVERRIDE=1"]


def test_an_extra_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> list[list[float]]:
        raise UserError("the extra [detection] is missing")

    monkeypatch.setattr(device_check, "first_losses", missing)
    finding = device_check._guarded("fgd", lambda: device_check._detection("fgd", "cpu"))
    assert str(finding) == "?     fgd: not checked: the extra [detection] is missing"


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
