"""What to write where Hydra's grammar gives characters of a value a meaning: commas, brackets, spaces, and others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

KEY = re.compile(r"[+~]{0,2}[\w$./@:-]+")  # of an override
_OPEN = {"[": "]", "{": "}"}


def advice(override: str) -> str:
    """What is wrong with a word of the command line that Hydra cannot read, and how to write it in a shell."""
    key, equal, value = override.partition("=")
    if not equal or not KEY.fullmatch(key):
        such_as = quoted("data.prompt", "a {token} dog")
        todo = f"if it belongs to the word before, quote the whole value, such as {such_as}"
        return f"{override!r} is no KEY=VALUE; {todo}"
    if value[:1] in _OPEN and not value.endswith(_OPEN[value[0]]):
        whole = shlex.quote(f"{key}={value} ...{_OPEN[value[0]]}")
        return f"{override!r} ends before its {_OPEN[value[0]]}; a list with spaces needs quotes: {whole}"
    if value[:1] == "[":
        texts = [text.strip().strip("'\"") for text in value[1:-1].split(",")]
        whole = shlex.quote(f"{key}={list_of_texts(texts)}")
        return (
            f"{key}: Hydra gives characters of {value!r} a meaning; quote each text of the list, and all of it: {whole}"
        )
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return f"{key}: Hydra gives characters of {value!r} a meaning; quote it for shell and Hydra: {quoted(key, value)}"


def quoted(key: str, value: str) -> str:
    """A word for a shell by which Hydra sets ``key`` to the text ``value``, whatever characters it holds."""
    return shlex.quote(f"{key}={_text(value)}")


def list_of_texts(texts: Iterable[str]) -> str:
    """A list of texts, whatever characters they hold, as Hydra reads it."""
    return f"[{','.join(map(_text, texts))}]"


def _text(value: str) -> str:
    """A text in quotes, as Hydra reads it."""
    inner = re.sub(r'(\\*)"', r'\1\1\\"', value)
    inner = re.sub(r"(\\+)\Z", r"\1\1", inner)
    return f'"{inner}"'
