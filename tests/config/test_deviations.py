"""Deviations from a paper's protocol are told once."""

from __future__ import annotations

from benchmarks.config.deviations import shortest
from benchmarks.config.protocol import load_protocol


def test_a_length_that_is_changed_twice_is_one_deviation() -> None:
    short = load_protocol("cifar100-short")
    assert short.changed(epochs=5).deviations == ("5 epochs instead of 240, milestones and warm-ups scaled",)
    mixed = load_protocol("imagenet-mixed-short")
    usual = 300
    assert mixed.deviations[0] == f"2 epochs instead of {usual}, warm-ups scaled"
    assert not any("scaled" in text for text in mixed.changed(epochs=usual).deviations)
    assert short.changed(epochs=240).deviations == ()
    assert shortest(
        ["10 epochs instead of 240", "x", "5 epochs instead of 10, milestones scaled", "1 epoch instead of 5"]
    ) == (
        "1 epoch instead of 240",
        "x",
    )


def test_one_length_said_twice_is_one_deviation() -> None:
    """As a table has it whose rows were run by two versions of the suite."""
    assert shortest(["1 epoch instead of 50, milestones scaled", "1 epoch instead of 50"]) == ("1 epoch instead of 50",)


def test_what_else_a_sentence_says_stays() -> None:
    assert shortest(["3 epochs instead of 10, at most 64 tokens", "10 epochs instead of 3"]) == ("at most 64 tokens",)
    assert shortest(["3 epochs instead of 10", "7 epochs instead of 9"]) == (
        "3 epochs instead of 10",
        "7 epochs instead of 9",
    )
