"""Drawn folders of pictures and drawn records: read as they are, or refused in one line."""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from drawn import draws, one_line
from factory import make_record
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_drawn_settings import ODD, leaves

from udpbench.commands import report
from udpbench.commands.telling import WRONG_WORDS
from udpbench.core import images
from udpbench.core.folders import read_data_facts
from udpbench.data.folder import Folder
from udpbench.interfaces import Run

# -- folders -----------------------------------------------------------------------------------------------------------


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (5, 4)) -> bytes:
    stream, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(stream, form)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


WHOLE = [encoded("PNG"), encoded("JPEG"), encoded("GIF", "P"), encoded("WEBP"), encoded("BMP"), encoded("PNG", "LA"),
         encoded("PNG", "L", (1, 1)), encoded("TIFF")]  # fmt: skip
BYTES = st.one_of(
    st.sampled_from(WHOLE),
    st.sampled_from([b"", bytes(40), b"%!PS-Adobe-3.0 EPSF-3.0", b"version https://git-lfs.github.com/spec/v1\n"]),
    st.sampled_from([bomb(60_000), bomb(2**31 - 1), bomb(0)]),
    st.builds(lambda whole, at: whole[: int(at * len(whole))], st.sampled_from(WHOLE), st.floats(0, 1)),
    st.builds(
        lambda whole, at, bit: bytes(c ^ (bit if i == int(at * (len(whole) - 1)) else 0) for i, c in enumerate(whole)),
        st.sampled_from(WHOLE),
        st.floats(0, 1),
        st.integers(1, 255),
    ),
    st.binary(max_size=60),
)
STEMS = st.sampled_from([b"a", b"b", "ä".encode(), b"\xff\xfe", b".hidden", b"a b", b"a\nb", b"x" * 250, b"-", b"{token}", b"a.png", b"%s", b"~"])  # fmt: skip
ENDINGS = st.sampled_from([b".png", b".PNG", b".jpg", b".webp", b".gif", b".tiff", b"", b".exe", b".zip", b".svg"])
CAPTION = st.sampled_from([b"a dog", b"", b"\xff", b"a\nb", b'{"file_name": "a.png", "text": "a"}', b"file_name,text\na.png,b", b"[]", b"null\n", b'{"file_name": 1}', b"\0"])  # fmt: skip
CAPTIONS = st.dictionaries(
    st.sampled_from(["a.txt", "b.caption", "metadata.jsonl", "metadata.csv"]), CAPTION, max_size=2
)
FILES = st.dictionaries(st.builds(bytes.__add__, STEMS, ENDINGS), BYTES, min_size=1, max_size=3)


@given(
    files=FILES, captions=CAPTIONS, settings=st.sampled_from([{"size": 8}, {"geometry": "native"}, {"prompt": None}])
)
@draws(150)
def test_any_folder_is_written_as_a_whole_data_folder_or_refused_in_one_line(files, captions, settings):
    with TemporaryDirectory() as place:
        folder, out = Path(place) / "given", Path(place) / "out"
        folder.mkdir()
        for name, content in files.items():
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
        for text, content in captions.items():
            (folder / text).write_bytes(content)
        try:
            data = Folder(path=folder, **{"prompt": "a {token} dog", **settings})
            data.identity()
            data.check()
            data.write(out, Run())
        except WRONG_WORDS as error:
            one_line(error)
            return
        made = images.read_folder(out / "train")
        assert len(made) == data.sizes["train"]
        assert set(made) == set(images.read_metadata(out / "train"))
        assert all(0 <= x.min() <= x.max() <= 1 for x in made.values())
        assert read_data_facts(out)["prompts"]


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(data=st.data())
@draws(30)
def test_any_record_is_reported_or_left_out_with_one_line(data):
    record: Any = copy.deepcopy(make_record(subject="1"))
    for place in data.draw(st.lists(st.sampled_from(list(leaves(record))), min_size=1, max_size=2, unique=True)):
        inner: Any = record
        for name in place[:-1]:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[place[-1]] = data.draw(st.sampled_from(ODD))
            if data.draw(st.booleans()):
                del inner[place[-1]]
    text = json.dumps(record)
    if data.draw(st.integers(0, 3)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    _report(text.encode())


@pytest.mark.slow
@given(at=st.floats(0, 1), bit=st.integers(1, 255))
@draws(15)
def test_a_record_with_another_byte_is_reported_or_left_out_with_one_line(at, bit):
    text = bytearray(json.dumps(make_record(subject="1")).encode())
    text[int(at * (len(text) - 1))] ^= bit
    _report(bytes(text))


def _report(text: bytes) -> None:
    """The report of a whole record beside ``text``."""
    with TemporaryDirectory() as place, redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()) as shown:
        (Path(place) / "a.json").write_text(json.dumps(make_record()))
        (Path(place) / "b.json").write_bytes(text)
        status = report.main([place, "--no-plots", "--out", f"{place}/report"])
        lines = said.getvalue().splitlines()
        assert all(line.startswith("error: ") and len(line) < 1000 for line in lines), lines
        assert (status == 0) == (not lines)
        assert status == 2 or len(shown.getvalue().splitlines()) >= 3
        if status == 1:
            assert all("b.json" in line for line in lines), lines
