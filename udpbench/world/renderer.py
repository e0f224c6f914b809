"""The embedded world: a small renderer whose truth is known.

A picture shows one object (shape x main colour x second colour x texture x emblem) in a scene, with pose, light and
shadow. Captions can name the class noun, the main colour, the texture and the scene. They cannot name the second
colour or the emblem, so a *subject* (one combination never seen in pretraining) can only be learned from its
pictures.

Everything is analytic (signed distances and smooth edges) and batched: N pictures are rendered at once, any size, on
any device.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import astuple, dataclass, fields
from itertools import compress, product

import torch
from torch import Tensor

SHAPES = ("ball", "box", "cone", "star", "ring", "cross", "heart", "moon")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "halved", "checkered")
EMBLEMS = ("none", "disc", "bar", "plus", "hoop")
SCENES = ("on grass", "on sand", "in the snow", "at night", "by the sea", "on a table")

RGB = {
    "red": (0.85, 0.12, 0.12), "orange": (0.98, 0.50, 0.05), "yellow": (0.97, 0.90, 0.20), "green": (0.10, 0.55, 0.20),
    "cyan": (0.20, 0.82, 0.85), "blue": (0.12, 0.25, 0.80), "purple": (0.48, 0.15, 0.65), "pink": (1.00, 0.62, 0.78),
}  # fmt: skip
# sky at the top, sky at the horizon, ground at the horizon, ground at the bottom
SCENE_RGB = {
    "on grass": ((0.45, 0.68, 0.95), (0.75, 0.88, 0.98), (0.42, 0.62, 0.25), (0.30, 0.48, 0.15)),
    "on sand": ((0.62, 0.80, 0.95), (0.90, 0.92, 0.88), (0.88, 0.78, 0.55), (0.75, 0.62, 0.40)),
    "in the snow": ((0.62, 0.66, 0.72), (0.80, 0.82, 0.85), (0.95, 0.96, 0.98), (0.82, 0.86, 0.93)),
    "at night": ((0.03, 0.04, 0.14), (0.12, 0.12, 0.28), (0.10, 0.11, 0.13), (0.05, 0.05, 0.07)),
    "by the sea": ((0.95, 0.65, 0.45), (0.98, 0.85, 0.65), (0.25, 0.50, 0.62), (0.08, 0.28, 0.42)),
    "on a table": ((0.72, 0.70, 0.64), (0.66, 0.63, 0.57), (0.55, 0.35, 0.20), (0.42, 0.25, 0.13)),
}


@dataclass(frozen=True)
class Scenery:
    """Attributes of N pictures; every field is a tensor of N numbers (integers for the named attributes, floats for
    the rest)."""

    shape: Tensor
    color: Tensor
    second: Tensor
    texture: Tensor
    emblem: Tensor
    scene: Tensor
    x: Tensor  # centre of the object, in widths of the picture, 0 at the middle
    y: Tensor
    scale: Tensor  # radius of the object, in half widths of the picture
    angle: Tensor  # radians
    light: Tensor  # direction the light comes from, radians
    bright: Tensor  # overall brightness factor
    horizon: Tensor  # height of the horizon, -1 top, 1 bottom
    phase: Tensor  # moves the pattern of the ground, and the moon

    def __len__(self) -> int:
        return len(self.shape)

    def take(self, index: Tensor | slice) -> Scenery:
        """The pictures at ``index`` only."""
        return Scenery(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Subject:
    """One object: the combination that a thief wants to learn.

    Indices into the tables above.
    """

    shape: int
    color: int
    second: int
    texture: int
    emblem: int

    @property
    def noun(self) -> str:
        """The class noun, the only thing about the object that prompts may say."""
        return SHAPES[self.shape]

    def describe(self) -> str:
        """The whole truth in words, for reports; captions cannot say all of it."""
        color, second, emblem = COLORS[self.color], COLORS[self.second], EMBLEMS[self.emblem]
        return f"{color} {TEXTURES[self.texture]} {self.noun}, second colour {second}, emblem {emblem}"


def subject(index: int) -> Subject:
    """Subject number ``index``: all its attributes are drawn from the held-out combinations.

    Subjects 0-99 are for development, 100 and up for tests; every subject has a texture that shows its second colour
    and an emblem.
    """
    if index < 0:
        allowed = "0 (development: 0-99) and up (tests: 100 and up)"
        raise ValueError(f"subject: {index} is not a subject; allowed are {allowed}")
    rng = torch.Generator().manual_seed(7_000_000 + index)
    ranges = [(0, len(SHAPES)), (0, len(COLORS)), (0, len(COLORS)), (1, len(TEXTURES)), (1, len(EMBLEMS))]
    while True:
        drawn = Subject(*(int(torch.randint(low, high, (), generator=rng)) for low, high in ranges))
        if drawn.color != drawn.second and held_out(drawn.shape, drawn.color, drawn.second):
            return drawn


def held_out(shape: int, color: int, second: int) -> bool:
    """Whether a (shape, main colour, second colour) combination is kept out of pretraining (one in eight is)."""
    return hashlib.sha256(f"{shape}-{color}-{second}".encode()).digest()[0] % 8 == 0


def draw(n: int, rng: torch.Generator, subject: Subject | None = None) -> Scenery:
    """Draw ``n`` pictures: of one subject, or, without one, of the pretraining world (held-out combinations never
    occur)."""

    def integers(k: int) -> Tensor:
        return torch.randint(k, (n,), generator=rng)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=rng)

    if subject is None:
        shape, color, second = _pretraining_combinations(n, rng)
        texture, emblem = integers(len(TEXTURES)), integers(len(EMBLEMS))
    else:
        shape, color, second, texture, emblem = (torch.full((n,), value) for value in astuple(subject))
    return Scenery(
        shape, color, second, texture, emblem,
        scene=integers(len(SCENES)), x=uniform(-0.12, 0.12), y=uniform(-0.05, 0.10), scale=uniform(0.60, 0.78),
        angle=uniform(-0.35, 0.35), light=uniform(-math.pi, math.pi), bright=uniform(0.90, 1.05),
        horizon=uniform(-0.15, 0.25), phase=uniform(0.0, 2 * math.pi),
    )  # fmt: skip


def _pretraining_combinations(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rejection sampling of (shape, colour, second colour), colours different, none held out."""
    sizes = (len(SHAPES), len(COLORS), len(COLORS))
    forbidden = torch.tensor([j == k or held_out(i, j, k) for i, j, k in product(*map(range, sizes))]).view(sizes)
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        c = torch.stack([torch.randint(k, (2 * n + 8,), generator=rng) for k in sizes], 1)
        kept.append(c[~forbidden[tuple(c.T)]])
    shape, color, second = torch.cat(kept)[:n].T
    return shape, color, second


def captions(s: Scenery, rng: torch.Generator, drop: float = 0.35) -> list[str]:
    """Captions as an annotator of the pretraining world writes them: each nameable attribute is left out with
    probability ``drop``.

    The second colour and the emblem have no words.
    """
    keep = torch.rand(len(s), 3, generator=rng) >= drop
    said = [compress(words(s, i).items(), (True, *kept)) for i, kept in enumerate(keep.tolist())]
    return [caption(**dict(told)) for told in said]


def words(s: Scenery, i: int) -> dict[str, str]:
    """All that a caption can say about picture ``i``, as arguments of ``caption``."""
    noun, color, texture, scene = SHAPES[s.shape[i]], COLORS[s.color[i]], TEXTURES[s.texture[i]], SCENES[s.scene[i]]
    return {"noun": noun, "color": color, "texture": texture, "scene": scene}


def caption(noun: str, color: str = "", texture: str = "", scene: str = "", token: str = "") -> str:
    """``a photo of a [token] [color] [texture] noun [scene]``."""
    return " ".join(w for w in ("a photo of a", token, color, texture, noun, scene) if w)


def render(s: Scenery, size: int = 64) -> Tensor:
    """Render the scenes.

    Returns NCHW float32 in [0,1], ``size`` x ``size``.
    """
    gx, gy = _grid(size)
    pixel = 2.0 / size  # width of a pixel in picture units: edges are smooth over about one of it
    picture = _background(s, gx, gy, pixel)
    picture = _cast_shadow(picture, s, gx, gy)
    return _draw_object(picture, s, gx, gy, pixel).mul(_per_item(s.bright)[:, None]).clamp(0, 1)


def silhouettes(s: Scenery, size: int = 64) -> Tensor:
    """Where the objects are: (N, 1, ``size``, ``size``) of 1 (object) and 0."""
    u, v = _object_axes(s, *_grid(size))
    return (torch.minimum(_distance(s.shape, u, v), _emblem_distance(s.emblem, u, v)) < 0)[:, None].float()


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """x and y of each pixel's middle, -1 to 1; (1, H, W)."""
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    gx, gy = torch.meshgrid(axis, axis, indexing="xy")
    return gx[None], gy[None]


def _per_item(v: Tensor) -> Tensor:
    return v.float().view(-1, 1, 1)


def _cover(distance: Tensor, width: Tensor | float) -> Tensor:
    """1 inside (distance < 0), 0 outside, a smooth edge of ``width``."""
    return torch.sigmoid(-4 * distance / width)


def _background(s: Scenery, gx: Tensor, gy: Tensor, pixel: float) -> Tensor:
    palette = torch.tensor([SCENE_RGB[name] for name in SCENES])[s.scene]  # (N, 4, 3)
    horizon, phase, scene = _per_item(s.horizon), _per_item(s.phase), _per_item(s.scene)

    def blend(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return a[:, :, None, None] * (1 - t[:, None]) + b[:, :, None, None] * t[:, None]

    sky = blend(palette[:, 0], palette[:, 1], ((gy + 1) / (horizon + 1)).clamp(0, 1))
    ground = blend(palette[:, 2], palette[:, 3], ((gy - horizon) / (1 - horizon)).clamp(0, 1))
    # A soft pattern on most grounds (snow and night are plain), so that scenes differ in more than colour.
    waves = torch.sin(22 * (gy - horizon) + 1.2 * torch.sin(4 * gx + phase))
    blades = torch.sin(26 * gx + 5 * torch.sin(3 * gy + phase) + phase)
    ripples = torch.sin(9 * gx + 16 * gy + phase)
    boards = torch.tanh(4 * torch.sin(7 * gx * (1.2 + gy - horizon) + phase))
    zero = torch.zeros_like(waves)
    patterns = [0.05 * blades, 0.04 * ripples, zero, zero, 0.07 * waves, 0.04 * boards]
    pattern = _chosen(patterns, s.scene)[:, None]
    moon = torch.exp(-8 * ((gx - 0.8 * torch.cos(phase)) ** 2 + (gy + 0.75) ** 2))[:, None]
    glow = moon * 0.35 * (scene == 3)[:, None]
    below = _cover(horizon - gy, pixel * 1.5)[:, None]
    return (sky + glow) * (1 - below) + (ground + pattern) * below


def _cast_shadow(picture: Tensor, s: Scenery, gx: Tensor, gy: Tensor) -> Tensor:
    x, y, scale = _per_item(2 * s.x), _per_item(2 * s.y), _per_item(s.scale)
    dx, dy = (gx - x + 0.12 * torch.cos(_per_item(s.light))) / scale, (gy - y - 0.95 * scale) / (0.28 * scale)
    return picture * (1 - 0.45 * torch.exp(-(dx**2 + dy**2)))[:, None]


def _object_axes(s: Scenery, gx: Tensor, gy: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in object units: the object reaches to about 1, whatever its place, size and angle."""
    scale, angle = _per_item(s.scale), _per_item(s.angle)
    px, py = (gx - _per_item(2 * s.x)) / scale, (gy - _per_item(2 * s.y)) / scale
    return px * angle.cos() + py * angle.sin(), py * angle.cos() - px * angle.sin()


def _draw_object(picture: Tensor, s: Scenery, gx: Tensor, gy: Tensor, pixel: float) -> Tensor:
    u, v = _object_axes(s, gx, gy)
    edge = 1.5 * pixel / _per_item(s.scale)
    distance = _distance(s.shape, u, v)
    rgb = torch.tensor([RGB[name] for name in COLORS])
    main, second = (rgb[c][:, :, None, None] for c in (s.color, s.second))
    # Texture and rim have the second colour.
    ink = torch.maximum(_texture(s, u, v, edge), _cover(-distance - 0.11, edge))[:, None]
    surface = main * (1 - ink) + second * ink
    mark = _cover(_emblem_distance(s.emblem, u, v), edge)[:, None]
    surface = surface * (1 - mark) + 0.97 * mark
    light = _per_item(s.light)
    shade = 1.0 + 0.10 * (u * light.cos() + v * light.sin())
    inside = torch.maximum(_cover(distance, edge)[:, None], mark)
    return picture * (1 - inside) + surface * shade[:, None] * inside


def _texture(s: Scenery, u: Tensor, v: Tensor, edge: Tensor) -> Tensor:
    """Fraction of the second colour in the texture: stripes, the upper half, or checks, one to two periods across the
    object: coarse enough for latents of a quarter of the picture's side."""
    stripes = torch.sin(8.5 * v)
    checks = torch.sin(5.2 * u) * torch.sin(5.2 * v)
    fields = [torch.full_like(u, -9.0), stripes / 8.5, -v - 0.1, checks / 5.2]
    return _cover(-_chosen(fields, s.texture), edge)


def _distance(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance (about) of each object's outline in object units, negative inside, in the order of SHAPES."""
    r = (u**2 + v**2).sqrt()
    ball = r - 0.85
    box = torch.maximum(u.abs(), v.abs()) - 0.75
    cone = torch.maximum(v - 0.75, (u.abs() * 1.75 - v * 0.95 - 0.85) / 2.0)
    theta = torch.atan2(u, -v)
    star = r - (0.70 + 0.25 * torch.cos(5 * theta))
    ring = (r - 0.62).abs() - 0.27
    cross = torch.minimum(torch.maximum(u.abs() - 0.30, v.abs() - 0.88), torch.maximum(v.abs() - 0.30, u.abs() - 0.88))
    hv = -v + 0.05
    heart = (u**2 + (hv * 1.05 - 0.62 * u.abs().sqrt() * 0.9 + 0.12) ** 2).sqrt() - 0.80
    moon = torch.maximum(r - 0.88, 0.68 - ((u - 0.48) ** 2 + v**2).sqrt())
    return _chosen([ball, box, cone, star, ring, cross, heart, moon], shape)


def _emblem_distance(emblem: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance of the white emblem near the middle of the object, in the order of EMBLEMS."""
    r = (u**2 + v**2).sqrt()
    none = torch.full_like(r, 9.0)
    disc = r - 0.19
    bar = torch.maximum(u.abs() - 0.30, v.abs() - 0.09)
    plus = torch.minimum(bar, torch.maximum(v.abs() - 0.30, u.abs() - 0.09))
    hoop = (r - 0.21).abs() - 0.08
    return _chosen([none, disc, bar, plus, hoop], emblem)


def _chosen(fields: list[Tensor], index: Tensor) -> Tensor:
    """Of each of N pictures the field at its ``index`` (N,); fields and result (N, H, W)."""
    stack = torch.stack(fields, 1)
    return stack.gather(1, index.view(-1, 1, 1, 1).expand(-1, 1, *stack.shape[-2:]))[:, 0]
