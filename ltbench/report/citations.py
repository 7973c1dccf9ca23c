"""What a paper cites for its methods and data sets: entries of results/published/references.bib, else what a plugin's file says.

A plugin's docstring may hold whole BibTeX entries, or name keys of the references ("Cite: cao2019ldam."); the first arXiv id in it
finds one there as well; else its first line becomes an entry. Docstrings are in no digest of code, so that a citation makes no record
stale.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ltbench.report.latex_text import escape, key

_ARXIV = re.compile(r"arXiv[:\s]+(\d{4}\.\d{4,5})", re.IGNORECASE)
_EPRINT = re.compile(r"(?:eprint\s*=\s*[{\"]?|arXiv[:\s])\s*(\d{4}\.\d{4,5})", re.IGNORECASE)
_CITE = re.compile(r"^Cite: ([\w, -]+)\.", re.MULTILINE)
_BEGIN = re.compile(r"@\s*(?!comment|string|preamble)[a-z]+\s*\{\s*([^\s,{}]+)\s*,", re.IGNORECASE)


@dataclass(frozen=True)
class Citation:
    """One BibTeX entry."""

    key: str
    entry: str


def entries(text: str) -> Iterator[Citation]:
    """The BibTeX entries in a text, whatever stands between them. One whose braces do not close is left out."""
    for begin in _BEGIN.finditer(text):
        depth, place = 0, begin.start()
        while place < len(text):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            place += 1
            if depth == 0 and text[place - 1] == "}":
                yield Citation(begin[1], text[begin.start() : place])
                break


def of_plugin(path: Path, name: str, known: Mapping[str, Citation]) -> list[Citation]:
    """What a plugin's file cites. `known`: entries of the references by key and by arXiv id (`by_name`)."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    own = list(entries(text))
    if own:
        return own
    asked = _CITE.search(text)
    if asked and (named := [known[each] for each in re.split(r"[, ]+", asked[1]) if each in known]):
        return named
    first = text.partition("\n")[0].strip()
    if not first:
        return []
    found = _ARXIV.search(first) or _ARXIV.search(text)
    if found and found[1] in known:
        return [known[found[1]]]
    return [_from_line(first, name, found[1] if found else None, f"{path.parent.name}/{path.name}")]


def by_name(citations: Mapping[str, Citation]) -> dict[str, Citation]:
    """Entries by their key, and by the arXiv id in them."""
    return {found[1]: each for each in citations.values() if (found := _EPRINT.search(each.entry))} | dict(
        citations
    )


def _from_line(first: str, name: str, arxiv: str | None, file: str) -> Citation:
    """ "CBDM: class-balancing diffusion models (Qin et al., CVPR 2023, arXiv ...)" as an entry that says where it is from."""
    title, _, rest = first.partition(" (")
    note = f"{rest.partition(')')[0]}; as {file} cites it" if rest else f"as {file} says"
    lines = [f"  title = {{{{{_field(title.rstrip('.'))}}}}}", f"  note  = {{{_field(note)}}}"]
    if arxiv:
        lines += [f"  eprint = {{{arxiv}}}", "  archivePrefix = {arXiv}"]
    citation = f"arxiv{arxiv}" if arxiv else f"ltbench-{key(name)}"
    return Citation(citation, f"@misc{{{citation},\n" + ",\n".join(lines) + "\n}")


def _field(text: str) -> str:
    """BibTeX counts braces even where they are escaped."""
    return escape(text.replace("{", "(").replace("}", ")"))
