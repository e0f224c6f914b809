"""Training pictures of the embedded models, for their developers: the toy world, crops of the photographs that
scikit-learn ships, and dead leaves."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.world import renderer, styles

SIZE = 64


def autoencoder_batch(n: int, rng: torch.Generator, photographs: bool = True) -> Tensor:
    """``n`` pictures, NCHW float32 [0,1]: ten in sixteen of the world, two with other colours, four with natural
    statistics (half of them crops of photographs, or none)."""
    other, natural = n // 8, n // 4
    world = renderer.render(renderer.draw(n - natural, rng), SIZE)
    world[:other] = _recolour(world[:other], rng)
    leaves = natural // 2 if photographs else natural
    natural_ones = [dead_leaves(leaves, rng), *([photo_crops(natural - leaves, rng)] if photographs else [])]
    return torch.cat([world, *natural_ones])


def _recolour(x: Tensor, rng: torch.Generator) -> Tensor:
    """Random mixing of the colour channels, so that colours outside the palette are coded too."""
    mix = torch.rand(len(x), 3, 3, generator=rng)
    mix = mix / mix.sum(2, keepdim=True)
    gain = 0.6 + 0.4 * torch.rand(len(x), 3, 1, 1, generator=rng)
    return torch.einsum("noc,nchw->nohw", mix, x) * gain


def dead_leaves(n: int, rng: torch.Generator, discs: int = 40) -> Tensor:
    """The dead-leaves model of natural images: overlapping discs of random colours and power-law radii (Lee et al.,
    2001)."""
    axis = (torch.arange(SIZE, dtype=torch.float32) + 0.5) / SIZE
    x = torch.rand(n, 3, 1, 1, generator=rng).expand(n, 3, SIZE, SIZE).clone()
    place = torch.rand(discs, n, 2, generator=rng)
    radius = 0.03 / torch.rand(discs, n, generator=rng).clamp(min=0.06)
    color = torch.rand(discs, n, 3, generator=rng)
    slope = torch.rand(discs, n, 2, generator=rng) - 0.5
    for k in range(discs):
        dx, dy = axis[None, None] - place[k, :, 0, None, None], axis[None, :, None] - place[k, :, 1, None, None]
        cover = torch.sigmoid((radius[k, :, None, None] - (dx**2 + dy**2).sqrt()) * 1.5 * SIZE)[:, None]
        shade = 1 + (dx * slope[k, :, 0, None, None] + dy * slope[k, :, 1, None, None])[:, None]
        x = x * (1 - cover) + color[k, :, :, None, None] * shade * cover
    return x.clamp(0, 1)


@lru_cache
def _photos() -> list[Tensor]:
    """Two colour photographs (scikit-learn) and three grey textures (scikit-image), each 3HW float32 [0,1]."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    arrays = [*load_sample_images().images, skimage.data.brick(), skimage.data.grass(), skimage.data.gravel()]
    photos = [torch.from_numpy(a.copy()).float() / 255 for a in arrays]
    return [p.permute(2, 0, 1) if p.ndim == 3 else p.expand(3, -1, -1) for p in photos]


def photo_crops(n: int, rng: torch.Generator) -> Tensor:
    """Random crops, 64 to 380 px wide, mirrored at random, resized to 64 px; three in four from the colour
    photographs."""
    crops = []
    for _ in range(n):
        r = torch.rand(6, generator=rng).tolist()
        photo = _photos()[int(r[0] * 2) if r[1] < 0.75 else 2 + int(r[0] * 3)]
        side = int(64 + (min(380, *photo.shape[1:]) - 64) * r[2])
        top, left = int(r[3] * (photo.shape[1] - side)), int(r[4] * (photo.shape[2] - side))
        crop = photo[None, :, top : top + side, left : left + side]
        crop = F.interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        crops.append(crop.flip(-1) if r[5] < 0.5 else crop)
    return _recolour_some(torch.cat(crops), rng)


def _recolour_some(x: Tensor, rng: torch.Generator) -> Tensor:
    half = len(x) // 2
    x = x.clone()
    x[:half] = _recolour(x[:half], rng)
    return x


def garbage(n: int, rng: torch.Generator) -> Tensor:
    """``n`` pictures that show no object of the world: noise, shuffled pieces, two pictures mixed, dead leaves.

    NCHW [0,1].
    """
    quarter = n // 4
    world = renderer.render(renderer.draw(n, rng), SIZE)
    noise = world[:quarter] * 0.3 + torch.rand(quarter, 3, SIZE, SIZE, generator=rng)
    mixed = (world[2 * quarter : 3 * quarter] + world[2 * quarter : 3 * quarter].roll(1, 0)) / 2
    leaves = dead_leaves(n - 3 * quarter, rng)
    return torch.cat([noise.clamp(0, 1), shuffle_pieces(world[quarter : 2 * quarter], rng), mixed, leaves])


def shuffle_pieces(x: Tensor, rng: torch.Generator, pieces: int = 4) -> Tensor:
    """Cut each picture into ``pieces`` x ``pieces`` squares and shuffle them."""
    n, side = len(x), SIZE // pieces
    cut = x.view(n, 3, pieces, side, pieces, side).permute(0, 2, 4, 1, 3, 5).reshape(n, pieces**2, 3, side, side)
    order = torch.stack([torch.randperm(pieces**2, generator=rng) for _ in range(n)])
    cut = cut.gather(1, order.view(n, -1, 1, 1, 1).expand_as(cut))
    return cut.view(n, pieces, pieces, 3, side, side).permute(0, 3, 1, 4, 2, 5).reshape(n, 3, SIZE, SIZE)


def in_styles(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each of NCHW [0,1] in a random style or in none; also which: (N,), the number after the last style for none."""
    style = torch.randint(len(styles.STYLES) + 1, (len(x),), generator=rng)
    x = x.clone()
    for k in range(len(styles.STYLES)):
        if (mine := style == k).any():
            x[mine] = styles.stylise(x[mine], k)
    return x, style


def worn(x: Tensor, rng: torch.Generator) -> Tensor:
    """A random blur (sigma 0-1) and a little noise for each picture: the judge shall read soft and slightly noisy
    pictures."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    sharp = torch.rand(len(x), 1, 1, 1, generator=rng)
    noise = 0.06 * torch.rand(len(x), 1, 1, 1, generator=rng) * torch.randn(x.shape, generator=rng)
    return (x * sharp + blurred * (1 - sharp) + noise).clamp(0, 1)
