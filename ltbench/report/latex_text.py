"""Any text as literal LaTeX that pdflatex, xelatex and lualatex all set, with no package and in any font encoding."""

from __future__ import annotations

import functools
import re
import unicodedata

from ltbench.report import words

_COMMANDS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "%": r"\%",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # \textquotedbl stops pdflatex in its default encoding
    "`": r"\char96{}",  # \textasciigrave needs a font beyond the standard ones
    "[": "{[}",  # after a line's end, [ and * would be arguments of the double backslash
    "]": "{]}",
    "*": "{*}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "·": r"$\cdot$",
    "°": r"$^{\circ}$",
    "²": "$^{2}$",
    "³": "$^{3}$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "–": "--",
    "—": "---",
    "‘": "`{}",
    "’": "'{}",
    "“": "``{}",
    "”": "''{}",
    "…": r"\ldots{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "\u00a0": "~",
    "\ufffd": "?",
}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"',
    "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0331": "b",
}  # fmt: skip
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega"
_LETTERS = {
    unicodedata.lookup(f"GREEK SMALL LETTER {'LAMDA' if name == 'lambda' else name.upper()}"): f"${command}$"
    for name in _GREEK.split()
    for command in (("o",) if name == "omicron" else (f"\\{name}",))
} | {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {'LAMDA' if name == 'Lambda' else name.upper()}"): f"$\\{name}$"
    for name in ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega")
}


_JOINING = re.compile(r"([-',])(?=\1)")  # -- would be a dash, '' a quotation mark


def escape(text: object) -> str:
    """Character by character, so that no replacement is escaped again; neighbours that TeX would join are kept apart.

    Accented Latin and Greek letters become commands. What no standard font has (漢, an emoji) is printed as its code, U+6F22.
    """
    plain = unicodedata.normalize("NFC", words.clean(text))
    found = _JOINING.sub(r"\1\0", plain)
    return "".join("{}" if character == "\0" else _character(character) for character in found)


@functools.cache
def _character(character: str) -> str:
    if character in _COMMANDS:
        return _COMMANDS[character]
    if character.isascii():
        return character
    if character in _LETTERS:
        return _LETTERS[character]
    base, *marks = unicodedata.normalize("NFD", character)
    if base.isascii() and base.isalpha() and marks and all(mark in _ACCENTS for mark in marks):
        for mark in marks:
            base = rf"\{_ACCENTS[mark]}{{{base}}}"
        return base
    return rf"\texttt{{U+{ord(character):04X}}}"


def key(text: object) -> str:
    """A name for \\cite, \\label or a BibTeX key: letters, digits and . : - only."""
    return re.sub(r"[^A-Za-z0-9.:-]+", "-", words.clean(text)).strip("-") or "x"


def with_notes(tabular: list[str], notes: list[str]) -> list[str]:
    """Lines of a `tabular` of LaTeX with notes (LaTeX) below it. Both stand in one column around them: as a row of the table itself, a
    note wider than the table would push its last column away from the others."""
    if not notes:
        return tabular
    rows = [
        rf"\multicolumn{{1}}{{@{{}}p{{0.9\linewidth}}@{{}}}}{{\footnotesize {note}}} \\" for note in notes
    ]
    *above, end = tabular
    return [r"\begin{tabular}{@{}c@{}}", *above, rf"{end} \\", *rows, r"\end{tabular}"]
