"""A pipeline of diffusers by where its files are: named in a key, looked at, fetched and loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from udpbench.core.compiled import check_compiler
from udpbench.core.component import Component, check_choice
from udpbench.core.digest import files_digest, folder_digest
from udpbench.models.folder import INDEX, SCHEDULERS, UNUSED, look
from udpbench.models.headers import pipeline_of

PREDICTIONS = ("epsilon", "v_prediction")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Pretrained(Component):
    """Weights of a diffusion model in a folder, in a single-file checkpoint, on a hub, or in the package.

    They are cheap to name. Whatever is read before they are loaded is a configuration or the header of a file.
    """

    places = ("path", "mirrors", "config", "compile")  # ``identity`` says what is compiled
    shape: ClassVar[str]  # what a folder must be shaped like
    trained: ClassVar[bool] = True  # whether its weights have learned anything
    option: ClassVar[str]  # of the configuration that takes such a folder
    pipelines: ClassVar[tuple[str, ...]]  # diffusers' classes that model_index.json may name; the first is ``pipeline``
    # Folders of the pipeline whose files are the model, and the classes that model_index.json may give them.
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"scheduler": SCHEDULERS}
    wants_classes: ClassVar[bool] = False  # whether its UNet is given a class

    def __init__(
        self,
        path: str,
        name: str,
        revision: str | None = None,
        mirrors: tuple[str, ...] = (),
        dtype: str = "fp32",
        config: str | None = None,
        compile: str = "none",
    ) -> None:
        check_choice(f"model {name}: unknown dtype", dtype, DTYPES)
        check_compiler(f"model {name}", compile)
        self.embedded = path.startswith("pkg:")
        if self.embedded:  # weights that come with the package
            path = str(Path(__file__).parent / "micro" / "weights" / path.removeprefix("pkg:"))
        self.name, self.path, self.revision, self.mirrors, self.dtype = name, path, revision, tuple(mirrors), dtype
        self.config, self.compile = config, compile
        self.device = torch.device("cpu")

    @property
    def pipeline(self) -> Any:
        """The class of diffusers."""
        import diffusers

        return getattr(diffusers, self.pipelines[0])

    def identity(self) -> dict[str, str]:
        """What names the weights in a key: digests of the parts of a local folder, or hub id and revision.

        Raises ValueError if neither a folder nor a hub id with a commit is given (branches and tags move), and with
        what ``looked_at`` finds.
        """
        local, file = Path(self.path).expanduser(), self._file
        if not (local.is_dir() or file) and not (HUB_ID.fullmatch(self.path) and self.revision):
            todo = f"give a {self.shape} folder, or a hub id (owner/name) with its revision"
            raise ValueError(f"model {self.name}: no folder {self.path!r}; {todo}")
        if not (local.is_dir() or file or COMMIT.fullmatch(str(self.revision))):
            todo = f"give its commit, 40 hex digits{self._commit_here}"
            raise ValueError(f"model {self.name}: revision {self.revision!r} may come to mean other weights; {todo}")
        found, how = self.looked_at(), {"dtype": self.dtype}
        if self.compile != "none":  # it rounds otherwise
            how["compile"] = self.compile
        if found and (file or local.is_dir()):
            return self._digests(found[0]) | how
        return {"hub": self.path, "revision": str(self.revision)} | how

    def contents(self) -> dict[str, str]:
        """Digests of its parts, by which models are compared: of a hub's too, once it is on this machine; before,
        ``identity``."""
        found = self.looked_at()
        return self._digests(found[0]) if found else self.identity()

    def _digests(self, folder: Path) -> dict[str, str]:
        digests = {part: folder_digest(folder / part) for part in self.parts}
        return digests | ({"file": files_digest([self._file])} if self._file else {})

    @property
    def _commit_here(self) -> str:
        """What a branch or tag means in the hub's cache, in words; nothing if it is not there."""
        return f"; on this machine it is {self.folder.name}" if self.folder else ""

    @property
    def folder(self) -> Path | None:
        """Where the pipeline's files are: a local folder, or a snapshot of the hub's in its cache; None: not here."""
        for name, revision in self._places:
            if (local := Path(name).expanduser()).is_dir():
                return local
            if HUB_ID.fullmatch(name):
                from huggingface_hub import try_to_load_from_cache

                if isinstance(found := try_to_load_from_cache(name, INDEX, revision=revision), str):
                    return Path(found).parent
        return None

    @property
    def _file(self) -> Path | None:
        """The single-file checkpoint that ``path`` is, if it is one."""
        file = Path(self.path).expanduser()
        return file if file.is_file() else None

    @property
    def _places(self) -> list[tuple[str, str | None]]:
        """Folders or hub ids with their revisions, in the order in which they are tried; of a single-file checkpoint
        that of its configuration files."""
        if self._file:
            return [_pinned(self.config or pipeline_of(self._file))]
        return [(self.path, self.revision), *map(_pinned, self.mirrors)]

    def looked_at(self) -> tuple[Path, str | None] | None:
        """The folder and the variant of its weights to load; None if the model is not on this machine yet.

        Raises ValueError in one line if anything of it is missing, damaged or not supported: see
        ``udpbench.models.folder``.
        """
        try:
            folder = self.folder or (self._downloaded() if self._file else None)  # configuration files are small
            return (folder, look(folder, type(self), self._file, keys=not self.embedded)) if folder else None
        except ValueError as error:
            raise ValueError(f"model {self.name}: {str(error).removeprefix(f'model {self.name}: ')}") from error

    @classmethod
    def unsupported(cls, configs: Mapping[str, Any]) -> Iterator[str]:
        """A line for everything in the configurations of the parts (``configs``) that is not supported."""
        scheduler, unet = configs["scheduler"], configs["unet"]
        flows = scheduler.get("use_flow_sigmas") or "Flow" in str(scheduler.get("_class_name"))
        kind = "flow_prediction" if flows else scheduler["prediction_type"]
        if kind not in PREDICTIONS:
            yield f"has no loss for the prediction {kind!r}; allowed are {', '.join(PREDICTIONS)}"
        if (unet.class_embed_type or unet.num_class_embeds) and not cls.wants_classes:
            yield "its UNet wants classes, which is not supported"
        if not isinstance(unet.sample_size, int):
            yield f"its UNet's sample_size must be a whole number, the side of its input, it is {unet.sample_size!r}"

    def fetch(self) -> None:
        """Download what is not on this machine, and look at it; ValueError with a line of what to do if it cannot be
        had."""
        if self.looked_at() is None:
            self._downloaded()
            self.looked_at()

    def _downloaded(self) -> Path:
        """The folder of what was downloaded from the first place that has it; of a single-file checkpoint, the
        configuration files."""
        from huggingface_hub import snapshot_download

        reason = "no such folder"
        for name, revision in self._places:
            try:
                if self._file:
                    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt"]))
                return Path(self.pipeline.download(name, revision=revision, **dict.fromkeys(UNUSED)))
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
        if self._file:
            said = f"the configuration of {self._file} is not in {name} ({reason})"
            todo = "give a folder with these files (and the tokenizer; no weights) as model.config=DIR"
            raise ValueError(f"model {self.name}: {said}; {todo}")
        places = ", ".join((self.path, *self.mirrors))
        todo = f"download it (hf download {self.path}) and say model={self.option} model.path=DIR"
        raise ValueError(f"model {self.name}: cannot be loaded from {places} ({reason}); {todo}")

    def load(self, **options: Any) -> Any:
        """The pipeline, frozen and on ``device``; ValueError as ``fetch``."""
        _quiet()
        self.fetch()
        folder, variant = self.looked_at() or (Path(self.path), None)
        if self._file:
            file = str(self._file)
            pipe = self.pipeline.from_single_file(file, config=str(folder), local_files_only=True, **options)
        else:
            pipe = self.pipeline.from_pretrained(folder, variant=variant, local_files_only=True, **options)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device, DTYPES[self.dtype])


def _pinned(place: str) -> tuple[str, str | None]:
    """A mirror's name and revision: ``owner/name@revision`` or ``owner/name``; a folder that exists is itself."""
    name, at, revision = place.rpartition("@")
    return (name, revision) if at and not Path(place).expanduser().is_dir() else (place, None)


def _quiet() -> None:
    """The libraries' own progress bars and warnings would run into ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
