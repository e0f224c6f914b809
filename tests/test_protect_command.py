"""``protect IN OUT`` and ``purify IN OUT``: one's own pictures, at their own size, with what their files hold beside RGB."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from shared import on

from udpbench.commands import protect, purify
from udpbench.commands.finishing import restored
from udpbench.commands.inputs import pictures_below
from udpbench.commands.pictures import _objections, report
from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.images import as_saved, from_pil, read, write_png
from udpbench.core.pixels import reduced
from udpbench.protect.noise import Noise

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process

SOFT = Image.linear_gradient("L")


def smooth(seed: int, height: int = 24, width: int = 24, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), np.uint8)
    return Image.fromarray(values.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


def protected(source, target, *words: str, cwd, command: str = "protect") -> subprocess.CompletedProcess:
    said = [sys.executable, "-m", "udpbench", command, str(source), str(target), *words]
    return subprocess.run(said, cwd=cwd, env={**os.environ}, capture_output=True, text=True, check=False)


@pytest.fixture
def local(tiny) -> list[str]:
    return [*on(tiny), "runtime.device=cpu", "runtime.threads=1"]


@pytest.fixture
def here(tmp_path, monkeypatch, capsys, local):
    """Runs a command in this process, in ``tmp_path``; returns what was shown and said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()

    def run(*words: str, main=protect.main) -> tuple[str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        main(["in", "out", *words, *local])
        return capsys.readouterr()

    return run


def done(root: Path, kind: str) -> int:
    return len(list(root.glob(f"outputs/store/{kind}/*/_stage.json")))


@pytest.mark.slow
def test_pictures_of_two_sizes_keep_size_and_budget(tmp_path, local):
    source, target = tmp_path / "Bilder (1), Müller's", tmp_path / "out"  # names that an override could not hold
    source.mkdir()
    for name, size in (("a", (30, 41)), ("b", (24, 24))):
        write_png(source / f"{name}.png", torch.rand(3, *size, generator=torch.Generator().manual_seed(0)))
    small = ["protect=eudp", "protect.rounds=1", "protect.model_steps=1", "protect.image_steps=3", "budget.eps=6"]
    process = protected(source, target, *small, *local, "--prompt", "my cat's ball, (red)", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for name in ("a.png", "b.png"):
        found = measure(read(source / name), read(target / name))
        assert 0 < found["linf"] <= 6
        assert name in process.stdout
    assert "eudp, linf_6" in process.stdout
    assert "eudp couples the pictures, so all 2 are done together, and anew whenever one changes" in process.stderr
    again = protected(source, target, *small, *local, "--prompt", "my cat's ball, (red)", cwd=tmp_path)
    assert again.stdout == process.stdout
    assert again.stderr == "2 of 2 pictures were done before with these settings and are kept\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["protect=nosuch"], "nosuch"),
        (["protect=noise", "budget.eps=300"], "300"),
        (["protect=advdm", "model=local", "model.path=/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, words, said):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", torch.rand(3, 16, 16))
    process = protected(tmp_path / "in", tmp_path / "out", *words, cwd=tmp_path)
    assert process.returncode == 2, process.stderr
    assert said in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("main", "words", "told"),
    [
        (protect.main, ["protect=none"], "error: protect=none changes nothing; give another protection"),
        (protect.main, ["protect=advdm", "model@surrogate=ddpm32"], "error: advdm: needs an autoencoder and prompts, which surrogate ddpm32 lacks"),
        (protect.main, ["protect=noise_rms"], "error: protect=noise_rms: say whose strength it shall match"),
        (purify.main, ["attack=none"], "error: attack=none changes no pictures; give an attack that does"),
        (purify.main, ["model@purifier=ddpm32"], "error: impress: needs an autoencoder, which purifier ddpm32 lacks"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_any_work(here, tmp_path, capsys, main, words, told):
    smooth(0).save(tmp_path / "in" / "a.png")
    with pytest.raises(SystemExit) as end:
        here(*words, main=main)
    assert end.value.code == 2
    line, *_ = capsys.readouterr().err.splitlines()  # a model may lack more than what it is named for
    assert line.startswith(told)
    assert not (tmp_path / "outputs").exists()


def test_a_picture_that_cannot_be_read_is_called_what_a_person_calls_it(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    Image.fromarray(np.full((24, 24), 255.0, np.float32)).save(tmp_path / "in" / "b.tif")
    with pytest.raises(SystemExit) as end:
        here("protect=noise")
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: images: {(tmp_path / 'in' / 'b.tif').resolve()}: mode F with values outside ")


def test_a_full_disk_is_told_with_the_setting_that_moves_the_store(here, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/store/x")

    smooth(0).save(tmp_path / "in" / "a.png")
    monkeypatch.setattr("udpbench.benchmark.store.Store.do", full)
    with pytest.raises(SystemExit) as end:
        here("protect=noise")
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "error: cannot write outputs/store/x: No space left on device; free some space, or write elsewhere "
        "(runtime.store=DIR moves the store)"
    )


def test_a_folder_that_nothing_can_be_written_to_is_told_before_any_work(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit) as end:
        here("protect=noise")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: cannot write to the folder out: File exists; give another one"
    assert not done(tmp_path, "*")


@pytest.mark.slow
def test_a_missing_folder_is_named(tmp_path):
    process = protected(tmp_path / "nowhere", tmp_path / "out", "protect=noise", cwd=tmp_path)
    assert process.returncode == 2
    assert "nowhere" in process.stderr


@pytest.mark.slow
def test_one_s_own_pictures_are_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    write_png(tmp_path / "mine" / "a.png", torch.zeros(3, 16, 16))
    before = (tmp_path / "mine" / "a.png").read_bytes()
    process = protected(tmp_path / "mine", tmp_path / "mine" / ".", cwd=tmp_path)
    assert process.returncode == 2
    assert "the finished pictures would replace your own; give another folder" in process.stderr
    assert (tmp_path / "mine" / "a.png").read_bytes() == before


def test_a_new_picture_leaves_the_others_done(here, tmp_path):
    for i in range(2):
        smooth(i).save(tmp_path / "in" / f"{i}.png")
    small = ["protect=advdm", "protect.steps=2"]
    _, said = here(*small)
    assert "done before" not in said
    assert "advdm  2/2 img" in said
    assert done(tmp_path, "protect") == 2
    before = (tmp_path / "out" / "0.png").stat().st_mtime_ns
    smooth(2, 20, 30).save(tmp_path / "in" / "2.png")
    shown, said = here(*small)
    assert "2 of 3 pictures were done before with these settings and are kept" in said
    assert done(tmp_path, "protect") == 3
    assert (tmp_path / "out" / "0.png").stat().st_mtime_ns == before, "not even written again"
    assert all(f"{i}.png" in shown for i in range(3))
    here(*small, "budget.eps=4")
    assert done(tmp_path, "protect") == 6, "other settings, other pictures"
    assert measure(read(tmp_path / "in" / "0.png"), read(tmp_path / "out" / "0.png"))["linf"] <= 4


def test_alone_a_picture_is_protected_as_among_others(here, tmp_path):
    for i in range(2):
        smooth(i).save(tmp_path / "in" / f"{i}.png")
    here("protect=noise")
    both = (tmp_path / "out" / "1.png").read_bytes()
    (tmp_path / "in" / "0.png").unlink()
    here("protect=noise", "runtime.out=elsewhere", "--overwrite")
    assert (tmp_path / "out" / "1.png").read_bytes() == both


def test_transparency_resolution_and_exif_are_kept(here, tmp_path):
    exif = Image.Exif()
    exif[274], exif[315] = 6, "the artist"  # orientation: a quarter turn; artist
    smooth(0, 24, 36).save(tmp_path / "in" / "turned.jpg", quality=95, dpi=(300, 300), exif=exif)
    clear = smooth(1)
    clear.putalpha(SOFT.resize(clear.size))
    clear.save(tmp_path / "in" / "clear.png")
    here("protect=noise")
    with Image.open(tmp_path / "out" / "turned.png") as turned:
        assert turned.size == (24, 36)
        assert turned.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert dict(turned.getexif()) == {315: "the artist"}, "upright, so without an orientation"
    assert measure(read(tmp_path / "in" / "turned.jpg"), read(tmp_path / "out" / "turned.png"))["linf"] <= 8
    with Image.open(tmp_path / "out" / "clear.png") as made:
        assert made.getchannel("A").tobytes() == clear.getchannel("A").tobytes()
        change = np.asarray(made.convert("RGB")).astype(int) - np.asarray(clear.convert("RGB"))
    assert 0 < abs(change).max() <= 8
    assert abs(change)[:4].max() > 0, "the colours under what is transparent are protected, too"


@pytest.mark.parametrize(
    "words",
    [["jpeg"], ["vae_roundtrip"], ["pdm_pure", "family=micro", "attack.t=10", "attack.steps=2", "attack.less=1"]],
)
def test_an_attack_keeps_transparency_and_odd_sizes(here, tmp_path, words):
    clear = smooth(1, 23, 37)
    clear.putalpha(SOFT.resize(clear.size))
    clear.save(tmp_path / "in" / "clear.png")
    here(f"attack={words[0]}", *words[1:], main=purify.main)
    with Image.open(tmp_path / "out" / "clear.png") as made:
        assert made.size == (37, 23)
        assert made.getchannel("A").tobytes() == clear.getchannel("A").tobytes()
        assert made.convert("RGB").tobytes() != clear.convert("RGB").tobytes()


def test_pictures_that_differ_in_transparency_only_are_not_mixed_up(here, tmp_path):
    for name, alpha in (("a", 255), ("b", 0)):
        white = Image.new("RGBA", (24, 24), (255, 255, 255, alpha))
        white.save(tmp_path / "in" / f"{name}.png")
    here("protect=noise")
    for name, alpha in (("a", 255), ("b", 0)):
        with Image.open(tmp_path / "out" / f"{name}.png") as made:
            assert made.getchannel("A").getextrema() == (alpha, alpha), name


def test_what_is_lost_is_told_a_line_a_picture_and_other_files_are_left_alone(here, tmp_path):
    folder = tmp_path / "in"
    smooth(0).convert("CMYK").save(folder / "print.tif")
    smooth(1).save(folder / "moves.gif", save_all=True, append_images=[smooth(2), smooth(3)])
    Image.fromarray((np.linspace(0, 65535, 576).reshape(24, 24)).astype(np.uint16)).save(folder / "deep.png")
    smooth(4).save(folder / "plain.png")
    (folder / "sub").mkdir()
    smooth(5).save(folder / "sub" / "below.png")
    for name in (".hidden.png", "notes.txt"):
        (folder / name).write_text("mine")
    shown, _ = here("protect=noise")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "deep.png",
        "moves.png",
        "plain.png",
        "print.png",
    ]
    lines = shown.splitlines()
    assert "print.tif: colours for print or of another space (CMYK): now RGB" in lines
    assert "moves.gif: an animation: its first frame is kept" in lines
    assert "deep.png: 16 bits a channel: 8 are kept" in lines
    assert not [line for line in lines if line.startswith("plain.png:")]
    left = "Pictures in subfolders, which are left out: 1."
    assert f"4 protected pictures in out. Changes are in 1/255. {left}" in lines


@pytest.mark.parametrize("command", [protect.main, purify.main])
def test_a_grey_picture_stays_grey(here, tmp_path, command):
    folder = tmp_path / "in"
    smooth(0, channels=1).save(folder / "grey.jpg", quality=95)
    clear = smooth(1, channels=1)
    clear.putalpha(SOFT.resize(clear.size))
    clear.save(folder / "clear.png", dpi=(300, 300))
    Image.fromarray((np.linspace(0, 65535, 576).reshape(24, 24)).astype(np.uint16)).save(folder / "deep.png")
    words = ["protect=advdm", "protect.steps=3"] if command is protect.main else ["attack.iterations=2"]
    shown, _ = here(*words, main=command)
    for name, mode in (("grey", "L"), ("clear", "LA"), ("deep", "L")):
        with Image.open(tmp_path / "out" / f"{name}.png") as made:
            assert made.mode == mode, name
    with Image.open(tmp_path / "out" / "clear.png") as made:
        assert made.getchannel("A").tobytes() == clear.getchannel("A").tobytes()
        assert made.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    found = measure(read(folder / "grey.jpg"), read(tmp_path / "out" / "grey.png"))
    assert found["linf"] > 0
    if command is protect.main:
        assert found["linf"] <= 8
        assert found["rms"] >= 2, "all channels moved together, and did not cancel"
    lines = [line for line in shown.splitlines() if line.split(":")[0] in ("grey.jpg", "clear.png", "deep.png")]
    assert lines == ["deep.png: 16 bits a channel: 8 are kept"]


def test_pictures_are_reduced_if_asked_and_the_budget_is_kept_around_what_is_left(here, tmp_path):
    wide = smooth(0, 30, 45)
    wide.putalpha(SOFT.resize(wide.size))
    wide.save(tmp_path / "in" / "wide.png")
    smooth(1, 12, 14).save(tmp_path / "in" / "small.png")
    shown, _ = here("protect=noise", "data.size=20")
    with Image.open(tmp_path / "out" / "wide.png") as made, Image.open(tmp_path / "out" / "small.png") as small:
        assert (made.mode, made.size, small.size) == ("RGBA", (30, 20), (14, 12))
    assert "wide.png: 45 x 30 px: now 30 x 20 (data.size, data.geometry)" in shown.splitlines()
    assert not [line for line in shown.splitlines() if line.startswith("small.png:")]
    shown_over_white = read(tmp_path / "out" / "wide.png")
    assert 0 < measure(reduced(read(tmp_path / "in" / "wide.png"), 20), shown_over_white)["linf"] <= 8
    here("protect=noise", "data.geometry=square")
    with Image.open(tmp_path / "out" / "wide.png") as made:
        assert made.size == (30, 30)


def cut_out(hidden: int, side: int = 128) -> Image.Image:
    """A disc of noise around (200, 40, 60) on transparent ground whose colour, which nobody sees, is ``hidden``."""
    down, across = np.mgrid[:side, :side] + 0.5 - side / 2
    alpha = np.clip(0.35 * side - np.hypot(down, across) + 0.5, 0, 1)
    disc = np.random.default_rng(0).integers(-30, 31, (side, side, 3)) + np.array([200, 40, 60])
    rgb = np.where(alpha[..., None] > 0, disc, hidden)
    return Image.fromarray(np.dstack([rgb, (255 * alpha).round()]).astype(np.uint8))


def over(ground: float, picture: Image.Image) -> torch.Tensor:
    """How a picture with transparency shows over a grey ground in [0,1], CHW."""
    rgba = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1) / 255
    return rgba[:3] * rgba[3:] + ground * (1 - rgba[3:])


@pytest.mark.parametrize("words", [["data.size=48"], ["data.size=48", "data.geometry=square"], []])
@pytest.mark.parametrize("hidden", [0, 255])
def test_hidden_colours_stay_out_of_the_edges_and_of_the_budget(here, tmp_path, hidden, words):
    cut_out(hidden).save(tmp_path / "in" / "disc.png")
    here("protect=noise", *words)
    side = 48 if words else 128
    wanted = as_saved(reduced(read(tmp_path / "in" / "disc.png"), side))
    assert 0 < measure(wanted, read(tmp_path / "out" / "disc.png"))["linf"] <= 8
    with Image.open(tmp_path / "out" / "disc.png") as made:
        for ground in (0.0, 0.5, 1.0):  # bicubic resizing overshoots at the edge of the disc; a fringe differs by 50
            whole = reduced(over(ground, cut_out(hidden)), side)
            assert (over(ground, made) - whole).abs().max() <= (8 + (17 * (1 - ground) if words else 0) + 1) / 255


@pytest.mark.parametrize("hidden", [0, 255])
def test_a_purified_cut_out_has_no_fringe(here, tmp_path, hidden):
    cut_out(hidden).save(tmp_path / "in" / "disc.png")
    here("attack=jpeg", "attack.quality=95", "data.size=48", main=purify.main)
    with Image.open(tmp_path / "out" / "disc.png") as made:
        faint = np.asarray(made)[..., 3] < 128
        shown = over(0.5, made)[:, faint]
    assert (shown - reduced(over(0.5, cut_out(hidden)), 48)[:, faint]).abs().max() <= 20 / 255


def test_without_a_change_a_resized_cut_out_shows_what_the_method_was_given():
    for hidden in (0, 255):
        image = cut_out(hidden)
        clean = as_saved(reduced(from_pil(image), 48))
        made, _ = restored(image, lambda x: reduced(x, 48), clean, clean)
        assert torch.equal(as_saved(from_pil(made)), clean)


def test_all_pictures_that_cannot_be_read_are_named_before_any_work(here, tmp_path, capsys):
    for i in range(4):
        smooth(i).save(tmp_path / "in" / f"{i}.png")
    for i in (1, 3):
        whole = (tmp_path / "in" / f"{i}.png").read_bytes()
        (tmp_path / "in" / f"{i}.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit) as end:
        here("protect=noise")
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" is truncated")[0] for line in lines] == [
        f"error: images: {tmp_path.resolve() / 'in' / f'{i}.png'}" for i in (1, 3)
    ]
    assert not done(tmp_path, "*")


def test_a_resolution_is_kept_where_the_file_states_one(here, tmp_path):
    exif = Image.Exif()
    exif[315] = "the artist"
    smooth(0).save(tmp_path / "in" / "none.tif")
    smooth(0).save(tmp_path / "in" / "none2.jpg", exif=exif)
    smooth(0).save(tmp_path / "in" / "one.png", dpi=(1, 1))
    exif[282], exif[283], exif[296] = 200.0, 200.0, 2  # across, down, an inch
    smooth(0).save(tmp_path / "in" / "in_exif.jpg", exif=exif)
    smooth(0).save(tmp_path / "in" / "jfif.jpg", dpi=(300, 300))
    smooth(0).save(tmp_path / "in" / "tags.tif", dpi=(400, 400))
    shown, _ = here("protect=noise")
    found = {}
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as made:
            found[path.stem] = round(made.info["dpi"][0]) if "dpi" in made.info else None
    assert found == {"none": None, "none2": None, "one": None, "in_exif": 200, "jfif": 300, "tags": 400}
    shown, _ = here("protect=noise", "--format", "webp")
    told = [line for line in shown.splitlines() if "resolution (dpi)" in line]
    assert told == ["resolution (dpi): webp has none: 3 pictures, e.g. in_exif.jpg"]


def test_a_folder_of_the_name_of_a_finished_picture_is_told_before_any_work(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    for words in ([], ["--overwrite"]):
        with pytest.raises(SystemExit) as end:
            here("protect=noise", *words)
        assert end.value.code == 2
        told = "error: out/a.png: is a folder, where a finished picture would be; give another OUT\n"
        assert capsys.readouterr().err == told
    assert not done(tmp_path, "*")


def test_a_full_disk_under_out_is_told_as_that(here, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    smooth(0).save(tmp_path / "in" / "a.png")
    monkeypatch.setattr("udpbench.commands.pictures.shutil.copyfile", full)
    with pytest.raises(SystemExit) as end:
        here("protect=noise")
    assert end.value.code == 2
    told = "error: cannot write out/a.png: No space left on device; free some space, or give another OUT"
    assert capsys.readouterr().err.splitlines()[-1].startswith(told)
    assert done(tmp_path, "protect") == 1


def test_a_folder_has_one_line_of_progress(here, tmp_path):
    for i in range(3):
        smooth(i).save(tmp_path / "in" / f"{i}.png")
    _, said = here("protect=noise")
    (line,) = said.splitlines()
    assert line.startswith("noise  3/3 img")


def test_names_of_any_bytes_and_length_come_through(here, tmp_path):
    names = [b"\xff caf\xe9.jpg".decode(errors="surrogateescape"), f"{'b' * 251}.jpg"]
    for i, name in enumerate(names):
        smooth(i).save(tmp_path / "in" / name, format="JPEG")
    here("protect=noise")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(name.replace(".jpg", ".png") for name in names)
    here("protect=noise", "--format", "webp")
    assert all(len(os.fsencode(name)) <= 255 for name in os.listdir(tmp_path / "out"))
    assert len(os.listdir(tmp_path / "out")) == 4


def test_pictures_smaller_than_ssim_s_window_are_protected_without_it(here, tmp_path):
    smooth(0, 8, 30).save(tmp_path / "in" / "a.png")
    shown, _ = here("protect=noise")
    assert measure(read(tmp_path / "in" / "a.png"), read(tmp_path / "out" / "a.png"))["linf"] == 8
    assert "8.0" in shown


def test_other_formats_are_lossless_too(here, tmp_path):
    clear = smooth(1)
    clear.putalpha(SOFT.resize(clear.size))
    clear.save(tmp_path / "in" / "clear.png", dpi=(300, 300))
    shown, _ = here("protect=noise", "--format", "webp")
    assert "clear.png: resolution (dpi): webp has none" in shown
    here("protect=noise")
    with Image.open(tmp_path / "out" / "clear.webp") as webp, Image.open(tmp_path / "out" / "clear.png") as png:
        assert webp.convert("RGBA").tobytes() == png.convert("RGBA").tobytes()


def test_purify_attacks_the_pictures_as_they_are(here, tmp_path):
    for i in range(2):
        smooth(i, 20, 28).save(tmp_path / "in" / f"{i}.png")
    shown, said = here("attack.iterations=2", main=purify.main)
    assert "impress, model local" in shown
    assert "2 purified pictures in out" in shown
    assert "survives" not in shown
    for i in range(2):
        assert read(tmp_path / "out" / f"{i}.png").shape == (3, 20, 28)
        assert measure(read(tmp_path / "in" / f"{i}.png"), read(tmp_path / "out" / f"{i}.png"))["linf"] > 0
    assert (done(tmp_path, "attack"), done(tmp_path, "protect"), done(tmp_path, "train")) == (2, 0, 0)
    _, said = here("attack.iterations=2", main=purify.main)
    assert said == "2 of 2 pictures were done before with these settings and are kept\n"
    here("attack=jpeg", "attack.quality=50", main=purify.main)
    assert done(tmp_path, "attack") == 4


def test_a_picture_too_long_for_webp_is_protected_and_refused_as_webp_before_any_work(here, tmp_path, capsys):
    Image.new("RGB", (16384, 2)).save(tmp_path / "in" / "long.png")
    shown, _ = here("protect=noise")
    assert (tmp_path / "out" / "long.png").is_file()
    (row,) = [line for line in shown.splitlines() if line.startswith(("│ long.png", " long.png", "long.png"))][:1]
    assert row.rstrip(" │").endswith("-")
    with pytest.raises(SystemExit) as end:
        here("protect=noise", "--format", "webp")
    assert end.value.code == 2
    assert "long.png: WebP holds sides of up to 16383 px; say --format png" in capsys.readouterr().err


def test_a_photograph_with_a_broken_second_one_in_its_file_is_protected(here, tmp_path):
    file = tmp_path / "in" / "phone.jpg"
    smooth(0).save(file, format="MPO", save_all=True, append_images=[smooth(1)])
    shown, _ = here("protect=noise")
    assert "phone.jpg: further pictures in the file: the first is kept" in shown.splitlines()
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"\xff\xd9") + 2])
    shown, _ = here("protect=noise")
    assert "1 protected pictures in out" in shown


def test_names_with_brackets_are_shown(here, tmp_path):
    smooth(0).save(tmp_path / "in" / "a[red].png")
    shown, _ = here("protect=noise")
    assert "a[red].png" in shown


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_a_line_that_says_what_to_do(here, tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    smooth(0).save(tmp_path / "in" / "a.png")
    monkeypatch.setattr("udpbench.protect.noise.Noise.protect", fail)
    with pytest.raises(SystemExit) as end:
        here("protect=noise")
    assert end.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith("error: the machine has too little memory; give runtime.grad_batch=N")


def test_a_picture_with_a_caption_is_kept_when_a_second_one_comes(here, tmp_path):
    smooth(0).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.txt").write_text("a photo of a ring")
    here("protect=noise")
    smooth(1).save(tmp_path / "in" / "b.png")
    _, said = here("protect=noise")
    assert "1 of 2 pictures were done before with these settings and are kept" in said


def test_pictures_that_are_somebody_s_own_are_never_replaced(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    smooth(1).save(tmp_path / "out" / "a.png")
    before = (tmp_path / "out" / "a.png").read_bytes()
    with pytest.raises(SystemExit) as end:
        here("protect=noise")
    assert end.value.code == 2
    assert "a.png: was not written from this store; give another folder, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    here("protect=noise", "--overwrite")
    assert (tmp_path / "out" / "a.png").read_bytes() != before
    here("protect=noise", "budget.eps=4")  # what the command wrote it replaces


def test_pictures_behind_links_are_never_replaced(here, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    smooth(0).save(tmp_path / "out" / "a.png")
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "out" / "a.png")
    with pytest.raises(SystemExit) as end:
        here("protect=noise", "--overwrite")
    assert end.value.code == 2
    assert "a.png: links into out, where it would be replaced; give another folder" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["data.prompt=x", "data.path=elsewhere", "+data.class_prompt=x", "data=toyworld"])
def test_settings_that_in_and_prompt_stand_for_are_refused(here, tmp_path, capsys, word):
    smooth(0).save(tmp_path / "in" / "a.png")
    with pytest.raises(SystemExit) as end:
        here("protect=noise", word)
    assert end.value.code == 2
    assert f"{word}: means nothing here; the pictures are those in IN" in capsys.readouterr().err


def test_prompts_and_folders_that_begin_a_reference_are_refused_in_a_line(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    with pytest.raises(SystemExit) as end:
        here("protect=noise", "--prompt", "a ${photo}")
    assert end.value.code == 2
    assert "error: folder: 'a ${photo}': no text can hold ${, which begins a reference" in capsys.readouterr().err


def test_floating_point_pictures_are_called_so(here, tmp_path):
    Image.fromarray(np.random.default_rng(0).random((24, 24)).astype("float32")).save(tmp_path / "in" / "a.tiff")
    assert "a.tiff: floating-point values: 8 bits are kept" in here("protect=noise").out


@pytest.mark.parametrize(
    ("main", "word"),
    [(protect.main, "attack=jpeg"), (protect.main, "task.steps=3"), (purify.main, "protect=eudp"), (purify.main, "budget.eps=4"),
     (protect.main, "runtime.workers=2"), (purify.main, "runtime.stages=pictures"), (protect.main, "+runtime.records=x"),
     (protect.main, "track=none"), (purify.main, "track.mode=online"),
     (protect.main, "protected_fraction=0.5"), (protect.main, "model@victim=micro_b"), (purify.main, "model@surrogate=micro_b"),
     (protect.main, "+metric@metrics.extra.fid=fid"), (purify.main, "data.reference=x"), (protect.main, "data.prompts=[a]"),
     (protect.main, "noise_rms.sign=false"), (protect.main, "protect@noise=noise")],
)  # fmt: skip
def test_settings_of_what_is_not_done_are_refused(here, tmp_path, capsys, main, word):
    smooth(0).save(tmp_path / "in" / "a.png")
    with pytest.raises(SystemExit) as end:
        here(word, main=main)
    assert end.value.code == 2
    assert f"error: {word}: means nothing here, where pictures are changed" in capsys.readouterr().err


def test_what_an_embedded_model_protects_is_said_to_be_nothing_real(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    few = ["protect=photoguard", "protect.steps=1"]
    assert "toy" not in here(*few).err, "a model from elsewhere"
    protect.main(["in", "toy", *few, "runtime.device=cpu"])
    said = capsys.readouterr().err
    assert "! the embedded model is a toy, this protects from nothing real; model=local model.path=DIR takes" in said
    protect.main(["in", "noisy", "protect=noise", "runtime.device=cpu"])
    assert "toy" not in capsys.readouterr().err, "noise has no model"


def test_a_method_that_exceeds_its_budget_is_told(here, tmp_path, monkeypatch):
    smooth(0).save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(
        Noise, "protect", lambda self, owner, budget, surrogate, run: [(x + 0.1).clamp(0, 1) for x in owner.images]
    )
    assert "! budget exceeded: a.png measures linf 26/255, allowed 8/255" in here("protect=noise").err


def test_settings_before_the_folders_are_refused_in_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        protect.main(["protect=noise", "in", "out"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: IN and OUT come before protect=noise (a folder of that name is")


def test_an_empty_name_is_no_folder(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        protect.main(["in", "", "protect=noise"])
    assert end.value.code == 2
    assert "OUT: is empty; give a folder" in capsys.readouterr().err


def test_a_signal_ends_it_between_two_pictures_and_the_same_command_goes_on(here, tmp_path, monkeypatch, capsys):
    for i in range(2):
        smooth(i).save(tmp_path / "in" / f"{i}.png")
    whole = Noise.protect

    def signalled(self, owner, budget, surrogate, run):
        signal.raise_signal(signal.SIGTERM)
        return whole(self, owner, budget, surrogate, run)

    with monkeypatch.context() as patch:
        patch.setattr(Noise, "protect", signalled)
        with pytest.raises(SystemExit) as end:
            here("protect=noise")
    assert end.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: interrupted; the same command goes on where this one stopped" in capsys.readouterr().err
    assert done(tmp_path, "protect") == 1, "what it was at is finished, and nothing more is begun"
    here("protect=noise")
    assert done(tmp_path, "protect") == 2
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_it_has_the_threads_of_a_cell_and_gives_the_others_back(tmp_path, monkeypatch):
    seen, whole, before = [], Noise.protect, torch.get_num_threads()

    def protect_(self, owner, budget, surrogate, run):
        seen.append(torch.get_num_threads())
        return whole(self, owner, budget, surrogate, run)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Noise, "protect", protect_)
    (tmp_path / "in").mkdir()
    smooth(0).save(tmp_path / "in" / "a.png")
    torch.set_num_threads(2)
    try:
        protect.main(["in", "out", "protect=noise", "runtime.device=cpu"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1], "the embedded model"


def test_the_home_of_nobody_is_a_folder_of_that_name(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    here("protect=noise", 'runtime.out="~nobody-here/x"')
    assert (tmp_path / "~nobody-here" / "x" / "store").is_dir()
    with pytest.raises(SystemExit) as end:
        protect.main(["~nobody-here/in", "out", "protect=noise"])
    assert end.value.code == 2
    assert "error: images: there is no folder ~nobody-here/in" in capsys.readouterr().err


def test_a_tilde_is_the_home(here, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    smooth(0).save(tmp_path / "in" / "a.png")
    here("protect=noise", 'runtime.out="~/x"')
    assert (tmp_path / "home" / "x" / "store").is_dir()
    assert not (tmp_path / "~").exists()


def test_what_one_folder_s_pictures_became_another_s_never_replace(here, tmp_path, capsys, local):
    (tmp_path / "other").mkdir()
    (tmp_path / "moved").mkdir()
    for i, folder in enumerate(("in", "other", "moved")):
        smooth(i % 2).save(tmp_path / folder / "a.png")  # "moved" has what "in" has
    here("protect=noise")
    before = (tmp_path / "out" / "a.png").read_bytes()
    with pytest.raises(SystemExit) as end:
        protect.main(["other", "out", "protect=noise", *local])
    assert end.value.code == 2
    assert "a.png: was not written from this store; give another folder, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    protect.main(["moved", "out", "protect=noise", "budget.eps=4", *local])
    smooth(2).save(tmp_path / "moved" / "a.png")
    protect.main(["moved", "out", "protect=noise", "budget.eps=4", *local])
    assert (tmp_path / "out" / "a.png").read_bytes() != before, "the folder's own pictures, changed since"


def test_pictures_of_a_stage_that_was_not_finished_were_written_by_nobody(here, tmp_path, capsys):
    smooth(0).save(tmp_path / "in" / "a.png")
    here("protect=noise")
    (made,) = (tmp_path / "outputs" / "store" / "finished").iterdir()
    (made / "pictures.json").unlink()
    made.rename(made.with_name(f"{made.name}.part"))
    with pytest.raises(SystemExit) as end:
        here("protect=noise", "budget.eps=4")
    assert end.value.code == 2
    assert "a.png: was not written from this store; give another folder, or --overwrite" in capsys.readouterr().err


def test_what_many_pictures_lost_is_told_once(capsys):
    row = {**dict.fromkeys(("linf", "rms", "psnr", "ssim")), "survives": {}}
    sizes = [f"{side} px: now 512" for side in range(50)]
    lost = [[], *[["16 bits"]] * 300, ["16 bits", "an animation"], *([size] for size in sizes)]
    report({f"{i}.png": {**row, "file": f"{i}.png", "lost": what} for i, what in enumerate(lost)}, "noise", "done")
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("... and 312 more") + 1 :] == [
        "16 bits: 300 pictures, e.g. 1.png",
        "301.png: 16 bits; an animation",
        *(f"{302 + i}.png: {size}" for i, size in enumerate(sizes[:38])),
        "... and of 12 more pictures something was lost",
        "done",
    ]


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("a.txt", b"one line\nand another"),
        ("a.caption", b""),
        ("a.txt", "caf\u00e9".encode("latin-1")),
        ("metadata.jsonl", b'{"file_name": "a.png", "label": 3}\n'),
    ],
)
def test_captions_are_read_by_methods_that_are_given_prompts_only(here, tmp_path, capsys, name, held):
    smooth(0).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / name).write_bytes(held)
    here("protect=noise")
    assert (tmp_path / "out" / "a.png").exists()
    with pytest.raises(SystemExit) as end:
        here("protect=advdm", "protect.steps=1")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "in" / name) in line


def test_captions_of_no_picture_are_told_where_captions_are_read(here, tmp_path):
    smooth(0).save(tmp_path / "in" / "a.b.png")
    (tmp_path / "in" / "a.txt").write_text("a photo of a ring")
    _, said = here("protect=advdm", "protect.steps=1")
    assert said.splitlines()[0].startswith(f"! not read as captions: a.txt in {Path('in')}; captions are those in")
    assert "not read" not in here("protect=noise").err
    (tmp_path / "in" / "a.txt").rename(tmp_path / "in" / "a.b.png.txt")
    _, said = here("protect=advdm", "protect.steps=1")
    assert "not read" not in said
    assert done(tmp_path, "protect") == 3, "another caption, another picture"


def test_what_cameras_and_editors_leave_beside_pictures_is_left_alone(here, tmp_path, capsys):
    for name in ("a.mov", "a.AAE", "a.xmp", "a.png~", "a.png.bak"):
        (tmp_path / "in" / name).write_text("mine")
    (tmp_path / "in" / "sub" / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/c.jpg", ".hidden.png"):
        smooth(1).save(tmp_path / "in" / "sub" / name)
    with pytest.raises(SystemExit):
        here("protect=noise")
    told = "error: images: no picture in in; subfolders are not read, they hold 2\n"
    assert capsys.readouterr().err == told
    smooth(0).save(tmp_path / "in" / "a.png")
    shown, _ = here("protect=noise")
    done_line = "1 protected pictures in out. Changes are in 1/255. Pictures in subfolders, which are left out: 2."
    assert done_line in shown.splitlines()
    (tmp_path / "in" / "raw.cr2").write_text("a picture that cannot be read")
    with pytest.raises(SystemExit):
        here("protect=noise")
    assert f"data folder: {tmp_path / 'in' / 'raw.cr2'} is not a picture; remove it" in capsys.readouterr().err


def test_pictures_in_the_folder_of_the_finished_ones_and_in_the_store_are_none_of_the_input(tmp_path):
    for name in ("sub", "out", "outputs", ".git"):
        (tmp_path / name).mkdir()
        smooth(0).save(tmp_path / name / "a.png")
    assert pictures_below(tmp_path, tmp_path / "out", tmp_path / "outputs") == 1


@pytest.mark.parametrize(("budget", "norm"), [(Linf(4), "linf"), (RMS(4), "rms")])
def test_a_budget_that_was_exceeded_is_told(budget, norm):
    part = SimpleNamespace(component=SimpleNamespace(needs=()))
    cell = SimpleNamespace(budget=SimpleNamespace(component=budget))
    rows = {"a.png": {"linf": 4.0, "rms": 4.0}, "b.png": {"linf": 4.0, "rms": 4.0} | {norm: 5.0}}
    (line,) = _objections(cell, part, part, "protect", rows)
    assert line == f"budget exceeded: b.png measures {norm} 5/255, allowed 4/255"
