"""Model folders and single-file checkpoints, looked at before anything is loaded: configurations and headers only.

The libraries load what is missing, cut or of another shape as random weights, after hours of other work or without a
word; a look finds it at once. Nothing in a folder is executed: its classes must be those of the libraries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from udpbench.core.digest import remembered
from udpbench.core.provenance import version
from udpbench.models.headers import PICKLES, by_library, compare, converted, original, read_json, variant_of, weights_in

INDEX = "model_index.json"
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that are never loaded
WEIGHTLESS = ("tokenizer", "scheduler", "low_res_scheduler")
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # of these parts; the last: a name of the first
SCHEDULERS = tuple(f"diffusers.{name}Scheduler" for name in (
    "DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "LCM",
))  # fmt: skip
LOOK = 2  # raise it with what a look finds: what was found good is remembered


def look(folder: Path, kind: Any, file: Path | None = None, keys: bool = True) -> str | None:
    """Which ``variant`` of the weights in ``folder`` is to be loaded (None: the plain files).

    ``kind``: the ``Pretrained`` that it is for: its ``shape``, ``pipelines``, ``parts`` and ``unsupported``.
    ``file``: a single-file checkpoint in the original layout, whose configuration files and tokenizer ``folder`` has.
    ``keys``: build the modules without weights and compare names and shapes, too; that imports the libraries.
    Raises ValueError with a line that names the file if something is missing, damaged or not supported.
    """
    stamps = tuple(_stamps(folder, [*kind.parts, *UNUSED], file))
    if not keys:
        return _look(folder, kind, file, keys, stamps)
    versions = [version(library) for library in ("diffusers", "transformers")]
    seen = f"look {LOOK} {versions} {kind.shape} {folder.resolve()} {file} {stamps}"
    return remembered(seen, lambda: _look(folder, kind, file, keys, stamps) or "") or None


def _stamps(folder: Path, parts: Sequence[str], file: Path | None) -> Iterator[tuple[str, int, int]]:
    """Names, sizes and modification times of all that a look reads."""
    places = [p for part in parts for p in sorted((folder / part).glob("*"))]
    for path in (folder / INDEX, *places, *([file] if file else [])):
        if path.is_file():
            yield str(path), path.stat().st_size, path.stat().st_mtime_ns


@lru_cache(maxsize=64)
def _look(folder: Path, kind: Any, file: Path | None, keys: bool, stamps: tuple[object, ...]) -> str | None:
    found = _classes(folder, kind)
    variant = None if file else variant_of(folder, found)
    headers = {} if file else {part: weights_in(folder / part, library, variant) for part, library in found.items()}
    whole = original(file) if file else {}
    if keys:
        modules = {part: _module(folder, part, kind.parts[part]) for part in found}
        configs = {part: module.config for part, module in modules.items()} | {"scheduler": _scheduler(folder)}
        for line in kind.unsupported(configs):
            raise ValueError(f"{file or folder}: {line}")
        held = converted(file, whole, modules) if file else headers
        for part, module in modules.items():
            wanted = {k: tuple(v.shape) for k, v in module.state_dict().items() if v.is_floating_point()}
            compare(file or folder / part, held[part], wanted, part)
        if "tokenizer" in kind.parts:
            _tokenizer(folder / "tokenizer", modules["text_encoder"].config)
    return variant


def _classes(folder: Path, kind: Any) -> dict[str, str]:
    """The parts of ``folder`` that hold weights, and the library of each."""
    if lacking := [name for name in (INDEX, *kind.parts) if not (folder / name).exists()]:
        loose = [path.name for path in folder.glob("*") if path.suffix in (".safetensors", *PICKLES)]
        todo = f"; of a single-file checkpoint give the file itself, e.g. {min(loose)}" if loose else ""
        raise ValueError(f"{folder} is no {kind.shape} folder: it lacks {', '.join(lacking)}{todo}")
    index = read_json(folder / INDEX)
    if (pipeline := index.get("_class_name")) not in kind.pipelines:
        allowed = ", ".join(kind.pipelines)
        raise ValueError(f"{folder / INDEX}: a pipeline {pipeline!r} is not supported; allowed are {allowed}")
    for part, said in index.items():
        named = ".".join(map(str, said)) if isinstance(said, list) else ""
        if part in kind.parts and named not in kind.parts[part]:
            allowed = ", ".join(kind.parts[part][:3]) + (", ..." if len(kind.parts[part]) > 3 else "")
            given = named or repr(said)
            raise ValueError(f"{folder / INDEX}: {part} is {given}, not supported; allowed are {allowed}")
        harmless = named in ("", "None.None") or (part in UNUSED and said[0] in LIBRARIES)
        if part not in kind.parts and not harmless:
            raise ValueError(f"{folder / INDEX}: has a part {part} ({named}), which is not supported")
    if lacking := [part for part in kind.parts if part not in index]:
        raise ValueError(f"{folder / INDEX} lacks {', '.join(lacking)}")
    return {part: index[part][0] for part in kind.parts if part not in WEIGHTLESS}


def _module(folder: Path, part: str, classes: tuple[str, ...]) -> Any:
    """The module of a part by its configuration, on the meta device: names and shapes, no weights."""
    import diffusers
    import transformers

    read_json(folder / part / "config.json")

    def build() -> Any:
        with torch.device("meta"):
            if part == "text_encoder":
                config = transformers.CLIPTextConfig.from_pretrained(folder / part, local_files_only=True)
                return transformers.CLIPTextModel(config)
            made = getattr(diffusers, classes[0].removeprefix("diffusers."))  # one of a kind's own ``parts``
            return made.from_config(made.load_config(folder / part, local_files_only=True))

    return by_library(folder / part / "config.json", build)


def _scheduler(folder: Path) -> Mapping[str, Any]:
    """Configuration of the noise schedule, with defaults; ValueError if it makes none."""
    import diffusers

    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    made = by_library(file, lambda: diffusers.DDPMScheduler.from_config(config))
    if not (len(betas := made.betas) and bool(((betas >= 0) & (betas <= 1)).all())):  # of NaN neither holds
        raise ValueError(f"{file}: the betas that it gives make no noise schedule")
    return {**made.config, **config}


def _tokenizer(place: Path, text: Any) -> None:
    """Load the tokenizer: it must know as many tokens as the text encoder and be able to form each."""
    import transformers

    for file in place.glob("*.json"):
        read_json(file)
    made = by_library(place, lambda: transformers.CLIPTokenizer.from_pretrained(place, local_files_only=True))
    bpe = json.loads(made.backend_tokenizer.to_str())["model"]
    formed, end = {"".join(pair) for pair in bpe["merges"]}, bpe.get("end_of_word_suffix") or ""
    special = {*made.all_special_tokens, *made.get_added_vocab()}
    lost = [w for w in bpe["vocab"] if w not in formed and w not in special and len(w.removesuffix(end)) > 1]
    if len(made) != text.vocab_size or lost:
        also = f", of which no merge forms {len(lost)} (such as {lost[0]!r})" if lost else ""
        raise ValueError(f"{place}: knows {len(made)} tokens{also}; the text encoder has {text.vocab_size}")
    if made.model_max_length > text.max_position_embeddings:
        most = text.max_position_embeddings
        raise ValueError(f"{place}: its model_max_length is {made.model_max_length:g}; the text encoder reads {most}")
