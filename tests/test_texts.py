"""What the models of a cell are told: prompts that fit, captions that are cut and counted, class prompts that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shared import composed

from udpbench.benchmark.build import build
from udpbench.benchmark.check import check_alone
from udpbench.benchmark.texts import cut_captions
from udpbench.core.errors import ConfigError
from udpbench.core.images import write_metadata, write_png
from udpbench.models.latent import LatentDiffusion
from udpbench.models.tokenizer import Tokenizer, read_tokenizer

LONG = "a photo" + ", very" * 40


def test_words_are_those_of_the_pipeline_and_read_without_it(model, tiny):
    tokenizer = read_tokenizer(tiny, False)
    assert tokenizer.most == 32
    assert tokenizer.ids("a photo of a sks ring") == Tokenizer(model.pipe.tokenizer).ids("a photo of a sks ring")
    fresh = LatentDiffusion(str(tiny), "tiny")
    assert fresh.tokenizer is tokenizer
    assert "pipe" not in vars(fresh)
    assert read_tokenizer(Path("nobody/nothing")) is None


@pytest.mark.parametrize(
    "text", ["", "a photo of a sks ring", "A  Photo\n of\ta café, it's 12° #<|endoftext|> x", "日本語 🙂 ﬁ", "a " * 40]
)
def test_words_of_an_embedded_model_are_those_of_transformers(text):
    folder = LatentDiffusion("pkg:micro", "micro").folder
    light, whole = read_tokenizer(folder, embedded=True), read_tokenizer(folder)
    assert light.ids(text) == whole.ids(text)
    assert light.most == whole.most == 32
    assert light.having("qwx", 2).ids("a qwx") == whole.having("qwx", 2).ids("a qwx")


def test_captions_are_counted_and_prompts_refused(model):
    tokenizer = Tokenizer(model.pipe.tokenizer)
    fits = "a" + " a" * 29  # 30 words, begin and end
    assert len(tokenizer.ids(fits)) == 32
    assert tokenizer.check([fits, f"{fits} a", f"{fits} a", f"{fits} a a"], [fits, f"{fits} a"]) == 2
    with pytest.raises(ValueError, match=f"the prompt '{fits} a' has 33 tokens, the text encoder takes 32; shorten it"):
        tokenizer.check([], [fits, f"{fits} a"])
    with pytest.raises(ValueError, match=r"the prompt 'caf\\udce9' holds bytes that are no text"):
        tokenizer.check([], ["caf\udce9"])


@pytest.fixture
def made(cell, tmp_path):
    """Overrides, and captions of two pictures -> the cell of these pictures, checked."""

    def build(*overrides: str, captions: tuple[str, ...] = ()):
        folder = tmp_path / "mine"
        for i in range(2):
            write_png(folder / f"{i}.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)))
        write_metadata(
            folder, {f"{i}.png": {"text": text} for i, text in enumerate(captions)} or {"0.png": {"text": "x"}}
        )
        if not captions:
            (folder / "metadata.jsonl").unlink()
        return cell("data=folder", f"data.path={folder}", "~data.size", *overrides)

    return build


GOOD, BAD, NO_NOUN = (
    "'data.prompt=\"{}\"'".strip("'").format(x) for x in ("a {token} dog", LONG + " {token} dog", "a {token}")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([BAD], "tokens, the text encoder takes 32; shorten it (dreambooth, victim local)"),
        ([GOOD, f'data.prompts=["{LONG}"]'], "shorten it (dreambooth, victim local)"),
        ([GOOD, f'data.class_prompt="{LONG}"', "protect=udp"], "shorten it (udp, surrogate local)"),
        ([GOOD, "task=img2img", "~task.pictures", f'task.prompts=["{{class}}, {LONG}"]'], "shorten it (img2img, victim local)"),
        ([GOOD, f'data.class_prompt="{LONG}"', "task.prior_weight=1", "task.prior_images=2", "protect=noise"], "shorten it (dreambooth, victim local)"),
        ([GOOD, "protect=disdiff", "protect.word=cat"], "disdiff: the prompt 'a dog' lacks the word 'cat'; give protect.word, a word of the owner's prompt (disdiff, surrogate local)"),
        ([GOOD, "protect=disdiff", "owner_prompt=empty"], "lacks the word 'dog'; give protect.word, a word of the owner's prompt (disdiff, surrogate local)"),
        ([GOOD, "protect=noise", "attack=sdedit", f'attack.negative_prompt="{LONG}"'], "shorten it (sdedit_0.2, purifier local)"),
        ([GOOD, "protect=noise", "attack=impress_pp", "attack.perceptual=lite1", f'attack.negative_prompt="{LONG}"'], "shorten it (dreambooth, victim local)"),
        ([NO_NOUN, "protect=udp"], "data: give data.class_prompt, such as 'a photo of a dog': 'a sks' without the subject's word names no class; it is for what the owner writes (owner_prompt)"),
        ([NO_NOUN, "task.prior_weight=1", "task.prior_images=2", "protect=noise"], "names no class; it is for task=dreambooth"),
        ([NO_NOUN, "task=img2img", "~task.pictures", "protect=noise"], "names no class; it is for task=img2img"),
        (['data.prompt="a {token} {noun}"'], "data folder: prompt: {noun} in 'a {token} {noun}' stands for nothing; allowed is {token}"),
        ([GOOD, 'data.class_prompt="a {token}"'], "data folder: class_prompt: {token} in 'a {token}' stands for nothing"),
        ([GOOD, 'data.prompts=["{instance}", "{instace} on ice"]'], "data folder: prompts: {instace} in '{instace} on ice' stands for nothing; allowed is {instance}, {token}"),
        ([GOOD, "task=img2img", "~task.pictures", 'task.prompts=["{instance}"]'], "img2img: prompts: {instance} in '{instance}' stands for nothing; allowed is {class}"),
        ([GOOD, "protect=noise", "attack=sdedit", 'attack.prompt="{prompt}"'], "attack: prompt: {prompt} in '{prompt}' stands for nothing; allowed is {caption}"),
        ([GOOD, "protect=noise", "attack=super_resolution", 'attack.negative_prompt="{caption}"'], "attack: negative_prompt: {caption} in '{caption}' stands for nothing"),
    ],
)  # fmt: skip
def test_what_no_model_could_be_told_is_told_before_any_work(made, overrides, told):
    with pytest.raises(ConfigError) as error:
        made(*overrides)
    lines = str(error.value).splitlines()
    assert any(line.endswith(told) for line in lines), lines


@pytest.mark.slow
def test_what_a_control_matches_is_told_what_a_protection_is(made, tiny, tmp_path):
    like = ("protect=noise_rms", "protect@like=aspl")
    with pytest.raises(ConfigError, match="names no class; it is for class pictures of protect@like=aspl$"):
        made(NO_NOUN, *like, "owner_prompt=data")
    cfg = composed(tiny, "data=folder", f"data.path={tmp_path / 'mine'}", "~data.size", GOOD, *like)
    cfg.data.class_prompt = LONG
    with pytest.raises(ConfigError, match=r"shorten it \(aspl, surrogate local\)$"):
        check_alone(build(cfg, cfg.hydra.runtime.choices, alone="protect"), "protect")


@pytest.mark.slow
def test_nobody_is_asked_for_a_class_prompt_that_nobody_reads(made):
    for overrides in (["protect=noise"], ["protect=udp", "owner_prompt=data"], ["protect=photoguard"], ["protect=glaze", "protect.perceptual=lite1"]):  # fmt: skip
        assert made(NO_NOUN, *overrides).data.component.facts().class_prompt is None
    assert made(NO_NOUN, "data.class_prompt=dog", "protect=udp").data.component.facts().class_prompt == "dog"


@pytest.mark.slow
def test_the_subject_s_word_is_looked_for_in_the_captions_where_the_owner_writes_them(made):
    words = (GOOD, "protect=consistent", "protect@inner=disdiff", "owner_prompt=data")
    assert made(*words, captions=("a sks dog", "my dog, sks"))
    with pytest.raises(ConfigError, match="disdiff: the prompt 'my cat' lacks the word 'dog'"):
        made(*words, captions=("a sks dog", "my cat"))


@pytest.mark.slow
def test_captions_that_are_too_long_are_cut_and_counted(made):
    assert cut_captions(made(GOOD, captions=("a sks dog", LONG))) == 1
    assert cut_captions(made(GOOD, "protect=udp", "owner_prompt=data", captions=("a sks dog", "a dog"))) == 0
    with pytest.raises(ConfigError, match="shorten it"):  # a caption that is the instance prompt is in every prompt
        made('data.class_prompt="a dog"', captions=(LONG, LONG))


def test_the_record_s_flags_speak_of_both():
    from factory import make_record

    from udpbench.results import flags

    assert not [flag for flag in flags.of_record(make_record()) if "captions" in flag or "references" in flag]
    said = flags.of_record(make_record(facts={"captions_cut": 3, "shared": {"reference": 2}}))
    assert "captions cut: the text encoder does not read the end of 3" in said
    assert "references are training pictures: 2 of reference" in said
