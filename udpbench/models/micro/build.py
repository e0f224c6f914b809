"""Architectures of the embedded models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from udpbench.data import renderer, styles
from udpbench.images import resize
from udpbench.models.latent import LatentDiffusion
from udpbench.models.micro import pictures
from udpbench.models.micro.judge import Judge
from udpbench.models.sample import sample
from udpbench.types import Run

WEIGHTS = Path(__file__).parent / "weights"


def autoencoder() -> AutoencoderKL:
    """64 px RGB to 8 latent channels at 16 px and back; 0.66 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=pictures.SIZE,
        mid_block_add_attention=False,
    )


def psnr(got: Tensor, want: Tensor) -> float:
    """Mean over pictures of the PSNR in dB, both NCHW [0,1], ``got`` rounded to 8 bits."""
    error = ((got * 255).round().clamp(0, 255) / 255 - want).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def measure_vae(vae: AutoencoderKL) -> dict[str, float]:
    """PSNR of the round trip on the pretraining world, on held-out subjects and on photographs that no training has
    seen."""
    vae.eval()

    def trip(x: Tensor) -> float:
        return psnr(vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample / 2 + 0.5, x)

    rng = torch.Generator().manual_seed(1)
    subjects = torch.cat([renderer.render(renderer.draw(16, rng, renderer.subject(k))) for k in range(10)])
    return {
        "psnr_world": trip(renderer.render(renderer.draw(128, rng))),
        "psnr_subjects": trip(subjects),
        "psnr_photographs": trip(unseen_photographs()),
    }


def unseen_photographs() -> Tensor:
    """Crops of the four photographs that no training reads (see udpbench.data.photos), NCHW [0,1], 64 px."""
    import skimage.data

    crops = []
    for name in ("chelsea", "coffee", "astronaut", "rocket"):
        photo = torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1).float() / 255
        side = min(photo.shape[1:])
        for part in (side, side // 2):
            top, left = (photo.shape[1] - part) // 2, (photo.shape[2] - part) // 2
            crops.append(resize(photo[None, :, top : top + part, left : left + part], pictures.SIZE))
    return torch.cat(crops)


def measure_prompts(model: LatentDiffusion, judge: Judge, n: int = 300) -> dict[str, float]:
    """Share of ``n`` pictures in which the judge finds what the prompt names: class, colour, texture, scene, and all
    four."""
    truth = renderer.draw(n, torch.Generator().manual_seed(3))
    said = renderer.captions(truth, torch.Generator().manual_seed(3), drop=0.0)
    made = torch.cat(list(sample(model, said, range(n), Run(0, batch=50), steps=20, guidance=2.0)))
    told = judge.classify(made)
    right = {name: told[name] == getattr(truth, name) for name in ("shape", "color", "texture", "scene")}
    right["all"] = torch.stack(list(right.values())).all(0)
    return {f"acc_{name}": float(v.float().mean()) for name, v in right.items()}


@torch.no_grad()
def measure_judge(judge: Judge, change: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, float]:
    """Accuracy by attribute and of the subject (shape, both colours, texture together) on held-out subjects 0-39,
    after ``change``."""
    judge.eval()
    rng = torch.Generator().manual_seed(2)
    right: dict[str, list[Tensor]] = {}
    for k in range(40):
        truth = renderer.draw(16, rng, renderer.subject(k))
        told = judge.classify(change(renderer.render(truth)))
        for name, value in told.items():
            right.setdefault(name, []).append(value == getattr(truth, name))
    share = {name: torch.cat(v) for name, v in right.items()}
    share["subject"] = share["shape"] & share["color"] & share["second"] & share["texture"]
    unsure = (judge.classify(pictures.garbage(512, rng))["shape"] < 0).float().mean()
    return {**{f"acc_{name}": float(v.float().mean()) for name, v in share.items()}, "garbage_unsure": float(unsure)}


@torch.no_grad()
def measure_style_judge(
    judge: Judge, change: Callable[[Tensor], Tensor] = lambda x: x, n: int = 10
) -> dict[str, float]:
    """Accuracy of the judge of styles by attribute and of the content (shape and scene together), after ``change``.

    On ``n`` pictures of each style and of none, of the pretraining world and of each of the held-out subjects 0-9; the
    worst style's accuracy, too, and the shares of these pictures and of garbage, in every style, that it is unsure of.
    """
    judge.eval()
    rng, styled = torch.Generator().manual_seed(4), range(len(styles.STYLES) + 1)
    right: dict[str, list[Tensor]] = {}
    for subject in (None, *map(renderer.subject, range(10))):
        for k in styled:
            truth = renderer.draw(n, rng, subject)
            x = renderer.render(truth)
            told = judge.classify(change(styles.stylise(x, k) if k < len(styles.STYLES) else x))
            for name in ("shape", "scene"):
                right.setdefault(name, []).append(told[name] == getattr(truth, name))
            right.setdefault("style", []).append(told["style"] == k)
            right.setdefault("unsure", []).append(told["style"] < 0)
    by_style = torch.stack(right["style"]).view(-1, len(styled), n).float().mean((0, 2))
    share = {name: torch.cat(v) for name, v in right.items()}
    share["content"] = share["shape"] & share["scene"]
    unsure = share.pop("unsure").float().mean()
    garbage = judge.classify(pictures.in_styles(pictures.garbage(512, rng), rng)[0])["style"] < 0
    return {
        **{f"acc_{name}": float(v.float().mean()) for name, v in share.items()},
        "acc_worst_style": float(by_style.min()),
        "world_unsure": float(unsure),
        "garbage_unsure": float(garbage.float().mean()),
    }


RARE_TOKENS = ("sks", "zwx", "ohwx", "qvl")  # words that name nothing: pretraining puts them into captions at random
MAX_TOKENS = 32


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges spell the words of the world, so each is one token; any other word falls apart
    into letters."""
    names = (
        *renderer.SHAPES,
        *renderer.COLORS,
        *renderer.TEXTURES,
        *renderer.SCENES,
        *RARE_TOKENS,
        "a photo of a picture style",
    )
    words = sorted({w for name in names for w in name.split()})
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(c + "</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        # Merges of earlier words may apply first: what they leave is joined by new, later merges.
        parts = _spell(word, merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def _spell(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of ``word``: the earliest merge that applies is applied first."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while pairs := [p for p in zip(parts, parts[1:], strict=False) if p in merges]:
        best = min(pairs, key=merges.index)
        i = list(zip(parts, parts[1:], strict=False)).index(best)
        parts[i : i + 2] = ["".join(best)]
    return parts


def text_encoder(
    words: CLIPTokenizer,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    inner: int = 512,
    tokens: int = MAX_TOKENS,
    vocabulary: int | None = None,
) -> CLIPTextModel:
    """A CLIP text model for the tokenizer ``words``, of random weights; as it is: the embedded model's, 0.5 M
    parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary or len(words),
            hidden_size=width,
            intermediate_size=inner,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokens,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.eos_token_id,
        )
    )


def unet() -> UNet2DConditionModel:
    """16 px latents of 8 channels, a thin first level, cross-attention on the two lower ones; 4.4 M parameters.

    The prompt reaches the network through cross-attention and, pooled, beside the time step (as in DeepFloyd IF),
    which is learned in far fewer steps.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
    )


def scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise schedule; ``prediction`` is ``epsilon`` or ``v_prediction``."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def assemble(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    words: CLIPTokenizer,
    prediction: str = "epsilon",
) -> StableDiffusionPipeline:
    """The parts as one pipeline, with Stable Diffusion's noise schedule."""
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=words,
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
