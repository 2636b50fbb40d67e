# ruff: noqa: RUF001
"""Plain text as LaTeX: pure ASCII that every engine and font encoding can set, and that is never a command."""

from __future__ import annotations

import re
import unicodedata

from ..table_layout import cut

# A starred or bracketed first cell would be read as an argument of the line break before it.
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "[": "{[}", "]": "{]}",
    "*": "{*}", '"': "''", "±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "∗": r"$\ast$", "×": r"$\times$",
    "→": r"$\to$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "–": "--", "—": "---", "−": "$-$",
    "…": r"\ldots{}", "·": r"$\cdot$", "°": r"$^\circ$", "’": "'", "‘": "`", "“": "``", "”": "''", "Δ": r"$\Delta$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "µ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "§": r"\S{}", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}",
    "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "đ": "d", "Đ": "D", "ð": "d", "þ": "th",
}  # fmt: skip

_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
"""Combining marks that the oldest font encoding has a command for."""

_MATH = {"†": r"\dagger{}", "∗": r"\ast{}", "×": r"{\times}", "=": "{=}", "≈": r"{\approx}"}

_LIGATURE = re.compile(r"-(?=-)|,(?=,)|`(?=`)|'(?=')|[?!](?=`)")
_PIECE = 12
_BREAK = re.compile(r"(?<=[_\-/.,:;=@+])")


def escape(text: str) -> str:
    """Text that LaTeX sets as it stands; white space is one blank, what it has no glyph for becomes its code."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(map(_escaped, _apart(composed)))


def flowing(text: str) -> str:
    """As :func:`escape`, and a long word may be broken: after a sign within it, or after some letters."""
    return " ".join(r"\hspace{0pt}".join(map(escape, _pieces(word))) for word in text.split())


def marks(text: str) -> str:
    """Marks, seed counts and numbers within math mode."""
    return "".join(_MATH.get(char) or (char if char in "+-.,/():abcdefghijklmnopqrstuvwxyz0123456789" else "")
                   for char in text)  # fmt: skip


def aside(text: str) -> str:
    """A number with a minus in place of a hyphen; words as they are."""
    return f"${marks(text)}$" if re.fullmatch(r"[+-]?[\d.]+", text) else escape(text)


def pieces(text: str, limit: int) -> list[str]:
    """A text in at most four lines of about ``limit`` characters, broken at blanks, after signs, or where it must."""
    words = re.split(r"(?<=\s)", cut(text, 4 * limit - 4))
    unbreakable = [piece for word in words for piece in _BREAK.split(word) if piece]
    lines: list[str] = []
    for piece in (whole[i : i + limit] for whole in unbreakable for i in range(0, len(whole), limit)):
        if lines and len(lines[-1].strip()) + len(piece.strip()) <= limit:
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.strip() for line in lines] or [""]


def label(name: str) -> str:
    """What may stand in \\label and \\ref."""
    return re.sub(r"[^A-Za-z0-9:.-]", "-", name)


def _apart(text: str) -> str:
    """With a zero-width mark between characters that fonts would join to another sign."""
    return _LIGATURE.sub(lambda pair: pair[0] + "\u2060", text)


def _escaped(char: str) -> str:
    if char == "\u2060":
        return "{}"
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isascii():
        return char if char.isprintable() else f"U+{ord(char):04X}"
    base, *accents = list(unicodedata.normalize("NFD", char))
    if accents and base.isascii() and base.isalpha():
        for accent in accents:
            base = rf"\{_ACCENTS[accent]}{{{base}}}" if accent in _ACCENTS else base
        return base
    plain = unicodedata.normalize("NFKD", char)
    return escape(plain) if plain.isascii() and plain.strip() else f"U+{ord(char):04X}"


def _pieces(word: str) -> list[str]:
    if len(word) <= _PIECE:
        return [word]
    return [piece[i : i + _PIECE] for piece in _BREAK.split(word) for i in range(0, len(piece), _PIECE)]
