"""Secrets stay out of files: texts that others wrote (messages, tracebacks, logs) pass through here before they are kept or shown.

Hidden are the values of environment variables whose names say secret, passwords inside addresses that variables hold, the tokens
in Hugging Face's token file and ~/.netrc, and whatever looks like a token of a known service. A method that prints
`os.environ` is careless, not hostile: what it encodes on purpose gets through.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

MARK = "[hidden]"
SHORTEST = 6  # characters; a shorter value would be hidden inside ordinary words
LINE = 8192  # bytes after which a line in a stream is not waited for any longer

# TOKENIZERS_PARALLELISM and GIT_AUTHOR_NAME are no secrets.
_WORDS = r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIALS?|AUTH(?!OR)|COOKIE|JWT"
_ORDINARY = {"enabled", "disabled", "default", "optional", "required"}
_NAME = re.compile(_WORDS, re.IGNORECASE)
_ADDRESS = re.compile(r"://([^\s/@'\"]{1,512})@")

# Every repetition is bounded: a line of 8 KiB that a method prints must not cost more than reading it.
_SHAPES = re.compile(
    "|".join(
        [
            r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|hf_|api_org_|npm_|pypi-|wandb_v1_|xox[abeprs]-)[\w-]{16,512}",
            r"(?<![A-Za-z0-9])sk-[\w-]{20,512}",
            r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])",
            r"(?<![A-Za-z0-9])AIza[\w-]{35}",
            r"(?<![A-Za-z0-9])ya29\.[\w-]{20,512}",
            r"(?<![A-Za-z0-9])eyJ[\w-]{8,2048}\.[\w-]{8,4096}\.[\w-]{8,1024}",
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\s\S]{0,8192}?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)",
        ]
    )
)
# What stands before a secret stays: it says which secret to look for.
_AFTER = re.compile(
    "|".join(
        [
            r"((?:" + _WORDS + r")[A-Z0-9_]{0,40}['\"]?\s{0,3}[=:]\s{0,3}['\"]?)([^\s'\",;)}\]]{6,2048})",
            r"((?i:password|passwd|passphrase|api[_-]?key|access[_-]?token|auth[_-]?token|secret[_-]?key|client[_-]?secret)"
            r"['\"]?\s{0,3}[=:]\s{0,3}['\"]?)([^\s'\",;)}\]]{6,2048})",
            r"((?i:authorization)['\"]?\s{0,3}[=:]\s{0,3}['\"]?(?i:(?:bearer|basic|token)\s)?)([^\s'\",;)}\]]{6,2048})",
            r"(--(?:[a-z]{1,20}-){0,3}(?:token|password|secret|api-key)[= ])(\S{6,2048})",
            r"([?&](?i:token|key|sig|signature|password|secret|x-amz-[a-z-]{1,20})=)([^\s&'\"#]{6,2048})",
        ]
    )
)
# One of these is in every text that the patterns match; looking for them is fifty times faster.
_HINTS = (
    *(
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        "glpat-",
        "hf_",
        "api_org_",
        "npm_",
        "pypi-",
        "wandb_v1_",
        "xox",
    ),
    *(
        "sk-",
        "akia",
        "asia",
        "aiza",
        "ya29.",
        "eyj",
        "private key-----",
        "://",
        "token",
        "secret",
        "passw",
        "passphrase",
    ),
    *(
        "api_key",
        "apikey",
        "api-key",
        "access_key",
        "accesskey",
        "private_key",
        "privatekey",
        "credential",
        "auth",
        "cookie",
    ),
    *("jwt", "?key=", "&key=", "?sig", "&sig", "x-amz-"),
)
_NUMBERS = (int, float, bool)
_known: set[str] = set()  # values seen in this process; a method may take a variable away and still print it
_considered: set[str] = set()


def clean(text: str) -> str:
    """`text` with every secret replaced by [hidden]."""
    return _clean(text, _values())


def _clean(text: str, values: list[str]) -> str:
    for value in values:
        if value in text:
            text = text.replace(value, MARK)
    small = text.lower()
    if not any(hint in small for hint in _HINTS):
        return text
    text = _SHAPES.sub(MARK, text)
    text = _ADDRESS.sub(_without_user, text)
    return _AFTER.sub(_hide_second, text)


def clean_all(value: Any) -> Any:
    """A JSON-able value with its texts clean, keys included."""
    return _clean_all(value, _Cleaned(_values()))


def _clean_all(value: Any, texts: _Cleaned) -> Any:
    if isinstance(value, str):
        return texts[value]
    if isinstance(value, dict):
        return {
            texts[key] if isinstance(key, str) else key: item
            if item is None or type(item) in _NUMBERS
            else _clean_all(item, texts)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean_all(item, texts) for item in value]
    return value


class _Cleaned(dict[str, str]):
    """Text -> clean text: of thousands of rows most texts are the same, and the environment is asked once for all."""

    def __init__(self, values: list[str]) -> None:
        super().__init__()
        self._values = values

    def __missing__(self, text: str) -> str:
        found = self[text] = _clean(text, self._values)
        return found


def looks_secret(text: str) -> bool:
    """Whether a text that is to be kept for good (a value of a spec) holds what looks like a secret."""
    return clean(text) != text


class Stream:
    """Cleans what comes in pieces: a secret cut in two by a buffer's end is still one line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Whole lines so far, clean; the rest waits for its end, or for `LINE` more bytes."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        key = data.rfind(b"-----BEGIN ")
        if key >= 0 and b"-----END " not in data[key:] and len(data) - key < 2 * LINE:
            end = min(end, key)  # the lines of a private key belong together
        elif len(data) - end > LINE:
            end = _cut(data)
        self._rest = data[end:]
        return _clean_bytes(data[:end])

    def flush(self) -> bytes:
        """What was waited for."""
        rest, self._rest = self._rest, b""
        return _clean_bytes(rest)


def _cut(data: bytes) -> int:
    """A place in a line without end that no secret lies across, as far as what follows it tells."""
    whole = _clean_bytes(data)
    for back in range(LINE // 2, LINE, 512):
        if _clean_bytes(data[:-back]) + _clean_bytes(data[-back:]) == whole:
            return len(data) - back
    return len(data) - LINE // 2


def _clean_bytes(data: bytes) -> bytes:
    return clean(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape") if data else b""


# --- inside ------------------------------------------------------------------------------------------------------------


def _hide_second(match: re.Match[str]) -> str:
    before, secret = (group for group in match.groups() if group is not None)
    return match[0] if secret.startswith(MARK) else before + MARK


def _without_user(match: re.Match[str]) -> str:
    return match[0] if match[1] in ("git", MARK) else f"://{MARK}@"


def _values() -> list[str]:
    """Secret values, the longest first: one may be a part of another."""
    for name, value in list(os.environ.items()):
        if _NAME.search(name):
            _learn(value)
        for found in _ADDRESS.finditer(value):
            _learn(found[1].partition(":")[2] or found[1])
    for value in _from_files():
        _learn(value)
    return sorted(_known, key=len, reverse=True)


def _learn(value: str) -> None:
    """Remember a secret in every spelling in which it could be printed."""
    value = value.strip()
    if value in _considered:
        return
    _considered.add(value)
    if len(value) < SHORTEST or value.isdigit() or value.lower() in _ORDINARY or os.path.exists(value):
        return  # SSH_AUTH_SOCK and HF_TOKEN_PATH name files
    lines = [line for line in value.splitlines() if len(line) >= 16] if "\n" in value else []
    _known.update({value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe=""), *lines})


def _from_files() -> Iterator[str]:
    home = Path(os.environ.get("HOME", "/nonexistent"))
    cache = Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface")
    yield from _read(Path(os.environ.get("HF_TOKEN_PATH") or cache / "token"))
    for text in _read(home / ".netrc"):
        yield from re.findall(r"\bpassword\s+(\S+)", text)


_files_read: dict[Path, tuple[str, ...]] = {}


def _read(path: Path) -> tuple[str, ...]:
    """The text of a small file as a tuple of one, read once; () where there is none."""
    if path not in _files_read:
        try:
            with path.open("rb") as file:
                _files_read[path] = (file.read(1 << 16).decode("utf-8", "replace"),)
        except OSError:
            _files_read[path] = ()
    return _files_read[path]
