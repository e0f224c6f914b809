"""Files of models, read as far as the names and shapes of weights: in several files, variants and layouts.

No weight is loaded and nothing in a file is executed. What is missing, cut, damaged or of another shape is a ValueError
of one line that names the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]  # name of a tensor -> its shape

STEMS = {"diffusers": ("diffusion_pytorch_model",) * 2, "transformers": ("model", "pytorch_model")}  # safetensors, bin
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
ORIGINAL = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
LFS = b"version https://git-lfs"
# Autoencoders saved by diffusers before 0.15 have these names; both libraries' loaders know them.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_json(file: Path) -> dict[str, Any]:
    """An object in a JSON file; ValueError that names the file if it is not there or holds none."""
    if not file.is_file():
        raise ValueError(f"{file.parent} lacks {file.name}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} {_damage(file) or f'is no JSON ({error})'}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def header(file: Path) -> Shapes:
    """Names and shapes of the tensors of floats in a weight file; their values are not read.

    Pickles are read by ``torch.load(weights_only=True)``, which makes tensors and nothing else. ValueError in one line
    if the file is not whole.
    """
    if not file.is_file():
        raise ValueError(f"{file.parent} lacks {file.name}")
    if damage := _damage(file):
        raise ValueError(f"{file} {damage}")
    return by_library(file, lambda: _pickled(file) if file.suffix in PICKLES else _safe(file))


def _safe(file: Path) -> Shapes:
    from safetensors import safe_open

    with safe_open(file, "pt") as found:  # compares the sizes in its header with the file's
        slices = {k: found.get_slice(k) for k in found.keys()}  # noqa: SIM118 (it cannot be iterated)
        return {k: tuple(s.get_shape()) for k, s in slices.items() if s.get_dtype() in ("F64", "F32", "F16", "BF16")}


def _pickled(file: Path) -> Shapes:
    try:
        found = torch.load(file, map_location="meta", weights_only=True)
    except UnpicklingError:  # torch's advice is to load it unchecked
        raise UnpicklingError("or holds more than tensors, which is never loaded; convert it to safetensors") from None
    while "state_dict" in found:
        found = found["state_dict"]
    return {k: tuple(v.shape) for k, v in found.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def _damage(file: Path) -> str:
    """What shows in the first bytes of a file that is not what its name says; empty: nothing."""
    with file.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(LFS):
        return "is a git-lfs pointer, not the file itself; run `git lfs pull` in its repository"
    return "" if start else "is empty"


def by_library(place: Path, do: Callable[[], T]) -> T:
    """``do()``; a library's error is a line that names ``place``."""
    try:
        return do()
    except MemoryError:  # which says nothing of the file
        raise
    except Exception as error:  # what is foreign and damaged may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{place} cannot be read: it is damaged or no file of such a model ({said[:200]})") from error


def variant_of(folder: Path, libraries: Mapping[str, str]) -> str | None:
    """The variant of weights that every part has (or the plain files): plain ones first, then fp16."""
    held: dict[str, set[str | None]] = {}
    for part, library in libraries.items():
        safe, pickle = STEMS[library]
        names = [path.name for path in (folder / part).iterdir() if path.is_file()]
        patterns = (
            rf"{safe}(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors",
            rf"{safe}\.safetensors\.index(?:\.([\w-]+))?\.json",
            rf"{pickle}(?:\.([\w-]+))?\.bin",
        )
        held[part] = {m[1] for name in names for pattern in patterns if (m := re.fullmatch(pattern, name))}
    for variant in (None, "fp16", *sorted({v for found in held.values() for v in found if v})):
        if all({variant, None} & found for found in held.values()):
            return variant
    part = next(part for part, found in held.items() if None not in found)
    wanted = f"{STEMS[libraries[part]][0]}.safetensors"
    if loose := sorted(path.name for path in (folder / part).glob("*.safetensors")):
        wanted += f" (or a variant of it that every part has); it has {', '.join(loose[:3])}"
    raise ValueError(f"{folder / part} lacks {wanted}")


def weights_in(folder: Path, library: str, variant: str | None) -> Shapes:
    """Names and shapes of a part's weights, from every file that a loader may choose."""
    safe, pickle = STEMS[library]
    for infix in (f".{variant}", "") if variant else ("",):  # a part without the variant has plain files
        single, index = folder / f"{safe}{infix}.safetensors", folder / f"{safe}.safetensors.index{infix}.json"
        found = [header(single)] if single.exists() or single.is_symlink() else []
        found += [_shards(index)] if index.exists() else []
        if not found and (pickled := folder / f"{pickle}{infix}.bin").exists():
            found = [header(pickled)]
        if found:
            if any(other != found[0] for other in found):
                raise ValueError(f"{folder}: {single.name} and {index.name} hold different weights; remove one")
            return found[0]
    raise ValueError(f"{folder} lacks {safe}.safetensors")


def _shards(index: Path) -> Shapes:
    """Of weights in several files, by their index."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) and "/" not in name for name in where.values()):
        raise ValueError(f"{index} holds no weight_map")
    shards = {name: header(index.parent / name) for name in sorted(set(where.values()))}
    if odd := [key for key, name in where.items() if key not in shards[name]]:
        raise ValueError(f"{index}: {where[odd[0]]} lacks {odd[0]}")
    return {key: shape for shard in shards.values() for key, shape in shard.items()}


def pipeline_of(file: Path) -> str:
    """The hub id of the pipeline whose configuration a checkpoint in the original layout has, by its weights."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    return str(fetch_diffusers_config(_meta(original(file)))["pretrained_model_name_or_path"])


def original(file: Path) -> Shapes:
    """``header`` of a checkpoint of a whole model in the original layout."""
    whole = header(file)
    for part, prefix in ORIGINAL.items():
        if not any(key.startswith(prefix) for key in whole):
            raise ValueError(f"{file} is no Stable Diffusion checkpoint in the original layout: no {prefix}* ({part})")
    return whole


def _meta(shapes: Shapes) -> dict[str, Any]:
    """Tensors without values."""
    return {k: torch.empty(shape, device="meta") for k, shape in shapes.items()}


def converted(file: Path, whole: Shapes, modules: Mapping[str, Any]) -> dict[str, Shapes]:
    """Names and shapes of a checkpoint in the original layout as ``from_single_file`` makes them of it, by part."""
    from diffusers.loaders import single_file_utils as library

    text, open_clip = modules["text_encoder"], "cond_stage_model.model."
    convert: dict[str, Callable[[], dict[str, Any]]] = {
        "unet": lambda: library.convert_ldm_unet_checkpoint(_meta(whole), modules["unet"].config),
        "vae": lambda: library.convert_ldm_vae_checkpoint(_meta(whole), modules["vae"].config),
        "text_encoder": lambda: (
            library.convert_open_clip_checkpoint(text, _meta(whole), prefix=open_clip)
            if any(key.startswith(open_clip) for key in whole)
            else library.convert_ldm_clip_checkpoint(_meta(whole))
        ),
    }
    made = {part: by_library(file, do) for part, do in convert.items()}
    return {part: {k: tuple(v.shape) for k, v in found.items()} for part, found in made.items()}


def compare(place: Path, found: Shapes, wanted: Shapes, part: str) -> None:
    """ValueError unless the weights are those of the module, name for name and shape for shape."""
    kept = {k: shape for k, shape in found.items() if not k.endswith("position_ids")}  # which is computed now
    has, needs = ({_name_now(k): shape for k, shape in of.items()} for of in (kept, wanted))
    lacking, further = sorted(needs.keys() - has.keys()), sorted(has.keys() - needs.keys())
    other = sorted(k for k in needs.keys() & has.keys() if needs[k] != has[k])
    if lacking:
        missing = f"{len(lacking)} of the {len(needs)} weights of the {part} are missing"
        raise ValueError(f"{place}: {missing}, e.g. {lacking[0]}")
    if other:
        k = other[0]
        raise ValueError(f"{place}: {k} is {list(has[k])}, by the configuration of the {part} it is {list(needs[k])}")
    if further:
        raise ValueError(f"{place}: holds {len(further)} weights that the {part} has no place for, e.g. {further[0]}")


def _name_now(key: str) -> str:
    """A weight's name without what differs between versions of the libraries."""
    key = re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.", key)
    return key.removeprefix("text_model.")
