"""DreamBooth: fine-tune the whole UNet (and, if asked, the text encoder) on a few pictures of a subject (Ruiz et al.,
CVPR 2023)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from udpbench.images import fit_square, read_folder, read_metadata, write_metadata, write_png
from udpbench.models.sample import SOLVERS, sample
from udpbench.task.fit import FitSettings, fit
from udpbench.types import Run

if TYPE_CHECKING:
    from udpbench.models.diffusion import Cond
    from udpbench.models.latent import LatentDiffusion


class DreamBooth:
    """The thief's fine-tuning and its pictures.

    Args:
        steps, lr, batch, weight_decay, warmup, ema, dtype, save_every: of the training (AdamW, float32 master
        weights, ``dtype`` autocast).
        train_text_encoder: tune the text encoder, too.
        gradient_checkpointing: less memory, more time.
        sample_latents: draw latents from the posterior at each step (as the released scripts do) or use its mean.
        prior_weight: weight of the prior-preservation loss on class pictures; 0: none.
        prior_images: how many class pictures the untuned model generates.
        pictures: how many pictures are generated for scoring, over the data's prompts in turn.
        sample_steps, guidance, solver: of the generation.
        curve: score at these multiples of ``steps``, all from one training of ``max(curve) * steps`` steps.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"latent", "text"})

    def __init__(
        self,
        steps: int,
        lr: float,
        batch: int,
        pictures: int,
        sample_steps: int,
        guidance: float,
        solver: str = "dpmpp",
        weight_decay: float = 1e-2,
        warmup: int = 0,
        ema: float = 0.0,
        dtype: str = "fp32",
        train_text_encoder: bool = False,
        gradient_checkpointing: bool = False,
        sample_latents: bool = False,
        prior_weight: float = 0.0,
        prior_images: int = 0,
        save_every: int = 100,
        curve: Sequence[float] = (1.0,),
    ) -> None:
        if min(steps, batch, pictures, sample_steps) < 1:
            raise ValueError(
                "dreambooth: steps, batch, pictures and sample_steps must be >= 1, "
                f"given {steps}, {batch}, {pictures}, {sample_steps}"
            )
        if solver not in SOLVERS:
            raise ValueError(f"dreambooth: unknown solver {solver!r}; allowed are {', '.join(SOLVERS)}")
        if prior_weight > 0 and prior_images < 1:
            raise ValueError(f"dreambooth: prior_weight {prior_weight} needs prior_images >= 1, given {prior_images}")
        if 1.0 not in [float(c) for c in curve]:
            raise ValueError(f"dreambooth: curve must hold 1, given {list(curve)}")
        self.steps, self.batch, self.pictures = steps, batch, pictures
        self.sampling: dict[str, Any] = {"steps": sample_steps, "guidance": guidance, "solver": solver}
        self.train_text_encoder, self.gradient_checkpointing = train_text_encoder, gradient_checkpointing
        self.sample_latents, self.prior_weight, self.prior_images = sample_latents, prior_weight, prior_images
        self.curve = sorted(float(c) for c in curve)
        self.training = FitSettings(
            steps=self.mark(self.curve[-1]),
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            ema=ema,
            dtype=dtype,
            save_every=save_every,
        )

    def mark(self, share: float) -> int:
        """Number of steps of a point of the curve."""
        return max(1, round(share * self.steps))

    # -- what each stage is keyed by -----------------------------------------------------------------------------------

    def training_key(self) -> dict[str, Any]:
        """The settings that a trained model depends on."""
        own = ("batch", "train_text_encoder", "sample_latents", "prior_weight", "curve")
        fitted = {k: v for k, v in vars(self.training).items() if k != "save_every"}
        return {
            **{k: getattr(self, k) for k in own},
            "fit": {k: list(v) if isinstance(v, tuple) else v for k, v in fitted.items()},
        }

    def sampling_key(self) -> dict[str, Any]:
        """The settings that generated pictures depend on."""
        return {**self.sampling, "pictures": self.pictures}

    # -- stages --------------------------------------------------------------------------------------------------------

    def train(
        self, images: Path, out: Path, victim: LatentDiffusion, run: Run, class_images: Path | None = None
    ) -> None:
        """Tune on the pictures in ``images`` (captions in its metadata.jsonl); write ``out/step_N/`` for every point
        of the curve."""
        model = victim.to(run.device)
        unet = model.fresh_unet("copy", run.rng("init"))
        encoder = _trainable_copy(model.pipe.text_encoder) if self.train_text_encoder else None
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            if encoder is not None:
                encoder.gradient_checkpointing_enable()
        subject = _Latents(model, images, self.sample_latents, run)
        prior = _Latents(model, class_images, self.sample_latents, run) if class_images else None

        def loss(step: int) -> Tensor:
            value = self._loss(model, unet, encoder, subject, run, ("subject", step))
            if prior is not None:
                value = value + self.prior_weight * self._loss(model, unet, encoder, prior, run, ("prior", step))
            return value

        def save(step: int) -> None:
            _publish({"unet": unet, **({"text_encoder": encoder} if encoder is not None else {})}, out / f"step_{step}")

        marks = [self.mark(c) for c in self.curve]
        parameters = [*unet.parameters(), *(encoder.parameters() if encoder is not None else ())]
        checkpoint = out / "checkpoint.pt"
        fit(parameters, loss, self.training, run, title="train", checkpoint=checkpoint, marks=marks, at_mark=save)
        checkpoint.unlink(missing_ok=True)

    def _loss(
        self,
        model: LatentDiffusion,
        unet: nn.Module,
        encoder: nn.Module | None,
        data: _Latents,
        run: Run,
        key: tuple[str, int],
    ) -> Tensor:
        rng = run.rng("train", *key)
        z, index = data.draw(self.batch, rng)
        t = torch.randint(len(model.alpha_bar), (self.batch,), generator=rng).to(run.device)
        noise = torch.randn(z.shape, generator=rng).to(run.device)
        run.tally("unet_victim", self.batch)
        return model.loss(z, data.cond(index, encoder), t, noise, unet).mean()

    def generate(
        self, tuned: Path | None, out: Path, victim: LatentDiffusion, prompts: Sequence[str], run: Run
    ) -> None:
        """Write ``pictures`` PNGs over ``prompts`` in turn, by the model in ``tuned`` (None: the untuned one).

        Those there are kept.
        """
        model = victim.to(run.device)
        model = model.with_tuned(tuned) if tuned else model
        generate_folder(model, [prompts[i % len(prompts)] for i in range(self.pictures)], out, run, self.sampling)

    def class_pictures(self, out: Path, victim: LatentDiffusion, prompt: str, run: Run) -> None:
        """Write ``prior_images`` PNGs of the class, by the untuned model."""
        generate_folder(victim.to(run.device), [prompt] * self.prior_images, out, run, self.sampling)


def generate_folder(
    model: LatentDiffusion, prompts: Sequence[str], out: Path, run: Run, sampling: dict[str, Any]
) -> None:
    """One PNG per prompt, named by number, with ``metadata.jsonl``; pictures that are already there are not made
    again."""
    names = [f"{i:05d}.png" for i in range(len(prompts))]
    left = [i for i, name in enumerate(names) if not (out / name).exists()]
    with run.log.bar("generate", len(prompts), "img") as advance:
        advance(len(prompts) - len(left))
        rest = iter(left)
        for made in sample(model, [prompts[i] for i in left], left, run, **sampling):
            for picture in made:
                write_png(out / names[next(rest)], picture)
            advance(len(made))
    write_metadata(
        out, {name: {"text": prompt, "seed": i} for i, (name, prompt) in enumerate(zip(names, prompts, strict=True))}
    )


class _Latents:
    """Latents (or their posterior) and prompts of a folder of pictures, computed once."""

    def __init__(self, model: LatentDiffusion, folder: Path, sampled: bool, run: Run) -> None:
        captions = read_metadata(folder)
        pictures = read_folder(folder)
        prompts = [captions[name]["text"] for name in pictures]
        self.prompts = sorted(set(prompts))
        self.which = torch.tensor([self.prompts.index(p) for p in prompts])
        self.model, self.sampled = model, sampled
        with torch.no_grad():
            x = torch.stack([fit_square(p, model.size) for p in pictures.values()])
            moments = [model.moments(part.to(run.device)) for part in x.split(run.batch)]
            self.mean, self.std = (torch.cat(parts) for parts in zip(*moments, strict=True))
            self.embedded: Cond = model.embed(self.prompts)

    def draw(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` latents with replacement and their indices."""
        index = torch.randint(len(self.mean), (n,), generator=rng)
        z = self.mean[index]
        if self.sampled:
            z = z + self.std[index] * torch.randn(z.shape, generator=rng).to(z.device)
        return z, index

    def cond(self, index: Tensor, encoder: nn.Module | None) -> Cond:
        """Prompt embeddings of the pictures at ``index``; by ``encoder`` if that is in training."""
        embedded = self.embedded if encoder is None else self.model.embed(self.prompts, encoder)
        return embedded.take(self.which[index])


def _trainable_copy(module: nn.Module) -> Any:
    import copy

    return copy.deepcopy(module).float().requires_grad_(True).train()


def _publish(parts: dict[str, nn.Module], folder: Path) -> None:
    """Save each part under its name as float32 safetensors: beside first, then renamed.

    A folder that is there is replaced: an attempt that was interrupted after this mark comes by it once more.
    """
    beside = folder.with_name(folder.name + ".part")
    for name, module in parts.items():
        module.save_pretrained(beside / name)  # type: ignore[operator]
    (beside / "parts.json").write_text(json.dumps(sorted(parts)))
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)
