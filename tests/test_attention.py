"""What is read of a UNet's attention is what it computes with, and the subject's tokens are found by the tokenizer."""

from __future__ import annotations

import pytest
import torch

from udpbench.models.attention import mean_map, read_attention
from udpbench.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def given(model):
    z = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    return z, torch.tensor([10, 700]), model.embed(["a photo of a sks ring", "a ring"])


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_outputs_follow_from_what_was_read(model, given, kind):
    z, t, cond = given
    before = model.predict(z, t, cond)
    with read_attention(model.pipe.unet, kind) as read:
        assert torch.equal(model.predict(z, t, cond), before)
    assert torch.equal(model.predict(z, t, cond), before)
    # On the way down, in the middle, and two layers on the way up: all of the tiny UNet's.
    assert [a.layer.split("_")[0] for a in read] == ["down", "mid", "up", "up"]
    for found in read:
        p = found.probabilities()
        tokens = found.query.shape[1] if kind == "self" else cond.hidden.shape[1]
        assert p.shape == (2, found.heads, found.query.shape[1], tokens)
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
        values = found.value.unflatten(-1, (found.heads, -1)).transpose(1, 2)
        layer = model.pipe.unet.get_submodule(found.layer)
        made = layer.to_out[0]((p @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(made, found.output, atol=1e-5, rtol=1e-4)


def test_a_mean_map_is_of_one_resolution_and_has_a_gradient(model, given):
    z, t, cond = given
    z = z.clone().requires_grad_(True)
    with read_attention(model.pipe.unet) as read:
        model.predict(z, t, cond)
    whole = mean_map(read, 8 * 6 // 16)
    assert whole.shape == (2, 4 * 3, cond.hidden.shape[1])  # the tiny UNet attends at half of the latents' resolution
    torch.testing.assert_close(whole, torch.stack([a.probabilities().mean(1) for a in read]).mean(0))
    (gradient,) = torch.autograd.grad(whole[0, :, 5].sum(), z)
    assert gradient[0].abs().max() > 0
    assert not gradient[1].any()


def test_a_unet_without_attention_says_so():
    with pytest.raises(ValueError, match="no cross-attention"), read_attention(torch.nn.Linear(1, 1)):
        pass


@pytest.mark.parametrize(("text", "word", "places"), [
    ("a photo of a sks ring", "sks", [5]), ("sks", "sks", [1]), ("a ring on a ring", "ring", [5]),
])  # fmt: skip
def test_a_word_is_found_by_its_tokens(model, text, word, places):
    tokenizer = Tokenizer(model.pipe.tokenizer)
    assert tokenizer.places(text, word) == places
    assert [tokenizer.ids(text)[i] for i in places] == tokenizer.ids(word)[1:-1]


def test_a_word_of_several_tokens_is_found_whole_and_a_missing_one_is_told(model):
    tokenizer = Tokenizer(model.pipe.tokenizer)
    places = tokenizer.places("a photo of a giraffe", "giraffe")
    assert len(places) > 1
    assert places == list(range(5, 5 + len(places)))
    long = " ".join(["ring"] * tokenizer.most + ["sks"])
    for text, word in (("a photo of a ring", "sks"), ("a photo", ""), (long, "sks")):
        with pytest.raises(ValueError, match="lacks the word"):
            tokenizer.places(text, word)
