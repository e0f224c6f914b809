"""Textual inversion: the vectors of one word are learned, everything else stays, and diffusers' loader understands the file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from udpbench.core import images
from udpbench.interfaces import Run, Thief
from udpbench.models.latent import EMBEDDING
from udpbench.task.textual_inversion import TextualInversion


def inversion(**settings) -> TextualInversion:
    given = {"steps": 3, "lr": 0.5, "batch": 2, "pictures": 2, "sample_steps": 2, "guidance": 2.0, "word": "sks"}
    return TextualInversion(**given | settings)


@pytest.fixture(scope="module")
def trained(model, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    inversion().train(folder, out, model, Run())
    return out / "step_3"


def test_the_file_holds_one_vector_under_the_new_word(model, trained):
    (name, vector), *rest = load_file(trained / "embedding" / EMBEDDING).items()
    assert name == "<sks>"
    assert vector.shape == model.pipe.text_encoder.get_input_embeddings().weight.shape[1:]
    assert not rest
    assert (vector - model.pipe.text_encoder.get_input_embeddings().weight.mean(0)).abs().max() > 0.1


def test_several_vectors_start_alike_and_part(model, folder, tmp_path):
    task = inversion(vectors=3)
    (start,) = task.trainable(model, Run()).parameters
    assert torch.equal(start[0], start[1])
    task.train(folder, tmp_path, model, Run())
    (rows,) = load_file(tmp_path / "step_3" / "embedding" / EMBEDDING).values()
    assert rows.shape == (3, start.shape[1])
    assert min(float((rows[i] - rows[j]).abs().max()) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_loaded_model_says_what_the_student_said(model, tmp_path, vectors):
    trainable = inversion(vectors=vectors).trainable(model, Run())
    trainable.parameters[0].data.normal_(generator=torch.Generator().manual_seed(1))
    trainable.save(tmp_path)
    loaded = model.with_tuned(tmp_path)
    prompts = ["a photo of a <sks> ring", "a photo of a ring", "<sks> <sks>"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.embed(prompts).hidden, trainable.model.embed(prompts).hidden)


def test_nothing_else_changes(model, trained):
    """Prompts without the new word mean what they meant; the victim does not know the word."""
    tuned = model.with_tuned(trained)
    said = ["a photo of a ring", "on sand", ""]
    with torch.no_grad():
        assert torch.equal(tuned.embed(said).hidden, model.embed(said).hidden)
    assert "<sks>" not in model.pipe.tokenizer.get_vocab()
    for a, b in zip(model.pipe.unet.parameters(), tuned.pipe.unet.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_pipeline_draws_what_the_embeddings_say(model, tmp_path):
    """Three vectors stand where the word stood, in the pipeline's own reading of a prompt as in ours."""
    trainable = inversion(vectors=3).trainable(model, Run())
    trainable.parameters[0].data.normal_(generator=torch.Generator().manual_seed(1))
    trainable.save(tmp_path)
    loaded = model.with_tuned(tmp_path)
    theirs, _ = loaded.pipe.encode_prompt("a photo of a <sks> ring", "cpu", 1, False)
    torch.testing.assert_close(loaded.embed(["a photo of a <sks> ring"]).hidden, theirs)
    ids = loaded.pipe.tokenizer(loaded.pipe.maybe_convert_prompt("a <sks>", loaded.pipe.tokenizer)).input_ids
    assert ids[2:5] == [ids[2], ids[2] + 1, ids[2] + 2]


@pytest.mark.parametrize(
    ("word", "new"),
    [("sks", "<sks>"), ("S*", "<s*>"), ("MyDog", "<mydog>"), ("<Cat-Toy>", "<cat-toy>"), ("my dog", "<my dog>"), ("É", "<é>")],
)  # fmt: skip
def test_whatever_the_word_all_its_vectors_stand_in_the_prompt(model, tmp_path, word, new):
    task = inversion(word=word, vectors=3)
    trainable = task.trainable(model, Run())
    trainable.parameters[0].data.normal_(generator=torch.Generator().manual_seed(1))
    trainable.save(tmp_path)
    loaded, prompt = model.with_tuned(tmp_path), task.caption(f"a photo of a {word} ring, on {word}.")
    assert prompt == f"a photo of a {new} ring, on {new}."
    assert list(load_file(tmp_path / "embedding" / EMBEDDING)) == [new]
    theirs, _ = loaded.pipe.encode_prompt(prompt, "cpu", 1, False)
    mine = trainable.model.embed([prompt]).hidden
    torch.testing.assert_close(mine, theirs)
    for gradient in torch.autograd.grad(mine.square().sum(), trainable.parameters)[0]:
        assert gradient.abs().max() > 0, "every one of them is learned"


def test_a_word_that_no_prompt_would_hold_is_told_before_any_work(model):
    with pytest.raises(ValueError, match="does not find the word '<my  dog>' in a prompt"):  # it makes one space of two
        inversion(word="my  dog", vectors=3).check_texts(model.tokenizer, [], [])
    with pytest.raises(ValueError, match="word must be a word, given ' '"):
        inversion(word=" ")


def test_the_word_must_be_in_what_the_text_encoder_reads_of_a_caption(model):
    task, filler = inversion(vectors=3), " ring" * 40
    assert task.check_texts(model.tokenizer, [f"a sks{filler}", "a sks"], ["a sks"]) == 1
    with pytest.raises(ValueError, match=r"the caption 'a ring .* is cut before its word, at 32 tokens"):
        task.check_texts(model.tokenizer, [f"a{filler} sks"], [])
    with pytest.raises(ValueError, match=r"the prompt 'a <sks> ring .* tokens, the text encoder takes 32; shorten it"):
        task.check_texts(model.tokenizer, [], [f"a sks{filler}"])
    with pytest.raises(ValueError, match="lacks the word 'sks'"):
        task.check_texts(model.tokenizer, ["a dog"], [])


def test_the_vector_is_all_that_is_trained(model):
    trainable = inversion().trainable(model, Run())
    (vector,) = trainable.parameters
    loss = trainable.model.embed(["a photo of a <sks> ring"]).hidden.square().sum()
    (gradient,) = torch.autograd.grad(loss, vector)
    assert gradient.abs().max() > 0
    assert not any(p.requires_grad for p in model.pipe.text_encoder.parameters())


def test_start_is_a_word_or_the_mean(model):
    table = model.pipe.text_encoder.get_input_embeddings().weight
    (mean,) = inversion().trainable(model, Run()).parameters
    (ring,) = inversion(start="ring").trainable(model, Run()).parameters
    torch.testing.assert_close(mean.data[0], table.mean(0))
    assert torch.equal(ring.data[0], table[model.pipe.tokenizer("ring", add_special_tokens=False).input_ids[0]])
    for wrong in ("nosuchword", "ring ball"):
        with pytest.raises(ValueError, match="start must be one word"):
            inversion(start=wrong).check_texts(model.tokenizer, [], [])
    with pytest.raises(ValueError, match="vectors must be <= 30, given 31"):
        inversion(vectors=31).check_texts(model.tokenizer, [], [])


def test_generation_uses_the_new_word_and_the_record_shows_the_data_s(model, trained, tmp_path):
    prompts = ["a photo of a sks ring"]
    for name in ("tuned", "pretrained"):
        (tmp_path / name).mkdir()
    inversion().generate(trained, tmp_path / "tuned", model, Run(), Thief(prompts=prompts))
    inversion().generate(None, tmp_path / "pretrained", model, Run(), Thief(prompts=prompts))
    assert {row["text"] for row in images.read_metadata(tmp_path / "tuned").values()} == set(prompts)
    one, two = (images.read_folder(tmp_path / name) for name in ("tuned", "pretrained"))
    assert any(not torch.equal(one[k], two[k]) for k in one)


def test_wrong_settings_are_told_in_one_line():
    with pytest.raises(ValueError, match="lacks the word 'sks'"):
        inversion().caption("a photo of a ring")
    with pytest.raises(ValueError, match="vectors must be >= 1"):
        inversion(vectors=0)
    with pytest.raises(ValueError, match="prior_weight 0"):
        inversion(prior_weight=1.0, prior_images=2)
