"""How fast other machines would be: a number that the user gives, or a share of what a card's maker publishes."""

from __future__ import annotations

from dataclasses import dataclass

from kd_methods.errors import UserError, unknown

SHARE = 0.05
"""Of the published peak, what training is assumed to sustain: small networks in fp32 are far from it. An assumption."""

PEAKS = {
    # NVIDIA's data sheets, without sparsity: TFLOP/s in fp32, tf32, bf16 and fp16, 0 where there is none.
    "t4": ("NVIDIA T4", 8.1, 0.0, 0.0, 65.0),
    "v100": ("NVIDIA V100 SXM2", 15.7, 0.0, 0.0, 125.0),
    "rtx3090": ("NVIDIA GeForce RTX 3090", 35.6, 35.6, 71.0, 71.0),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 82.6, 82.6, 165.2, 165.2),
    "a100": ("NVIDIA A100 SXM", 19.5, 156.0, 312.0, 312.0),
    "h100": ("NVIDIA H100 SXM", 67.0, 494.7, 989.4, 989.4),
    "h200": ("NVIDIA H200 SXM", 67.0, 494.7, 989.4, 989.4),
}
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Speed:
    """What a machine that is not here is taken to sustain.

    operations  floating-point operations a second
    words       what it is, and where the number comes from
    """

    operations: float
    words: str


def speed(text: str, precision: str) -> Speed:
    """``TFLOP/s`` as a number, or the name of a card.

    Args:
        text: what the user wrote.
        precision: of the protocol.

    Raises:
        UserError: it is neither, or the card does not compute in that precision.
    """
    try:
        given = float(text)
    except ValueError:
        pass
    else:
        if not 0 < given < float("inf"):
            raise UserError(f"--device-speed {text}: give the TFLOP/s that training sustains, more than 0")
        return Speed(given * 1e12, f"a device that sustains {given:g} TFLOP/s (as given)")
    if text.lower() not in PEAKS:
        raise unknown("device in --device-speed (or give a number of TFLOP/s)", text, PEAKS)
    title, *peaks = PEAKS[text.lower()]
    peak = dict(zip(PRECISIONS, peaks, strict=True))[precision]
    if not peak:
        raise UserError(f"--device-speed {text}: {title} has no {precision}; see --precision")
    words = f"{title} (estimated, not measured: {100 * SHARE:g} % of the published {peak:g} TFLOP/s in {precision})"
    return Speed(SHARE * peak * 1e12, words)
