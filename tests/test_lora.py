"""LoRA: what is trained, what is saved, and that the world's loaders make the same model of it."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from udpbench.interfaces import Run
from udpbench.models.lora import KOHYA, LORA
from udpbench.task.lora import Lora


def lora(**settings) -> Lora:
    given = {"steps": 3, "lr": 0.05, "batch": 2, "pictures": 2, "sample_steps": 2, "guidance": 2.0, "rank": 2}
    return Lora(**given | settings)


def told(model) -> torch.Tensor:
    """What a model predicts for fixed inputs and a prompt of its own text encoder."""
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([100, 700]), model.embed(["a photo of a ring", ""]))


@pytest.fixture(scope="module", params=["attention", "all"])
def trained(request, model, folder, tmp_path_factory):
    """(task, published folder) with alpha unlike rank."""
    task, out = lora(alpha=5.0, layers=request.param), tmp_path_factory.mktemp("out")
    before = told(model)
    task.train(folder, out, model, Run())
    assert torch.equal(told(model), before), "the victim itself was changed"
    assert not hasattr(model.pipe.unet, "peft_config")
    return task, out / "step_3"


def test_a_fresh_student_is_the_victim(model):
    assert torch.equal(told(lora().trainable(model, Run()).model), told(model))


def test_the_tuned_model_is_w_plus_alpha_over_rank_b_a(model, trained):
    """The saved tensors, multiplied by hand into the weights, are the model that the loader makes."""
    _, folder = trained
    tensors = load_file(folder / "lora" / LORA)
    by_hand = model.having(unet=copy.deepcopy(model.pipe.unet))
    downs = [name for name in tensors if name.endswith(".lora_A.weight")]
    assert 2 * len(downs) == len(tensors) > 0
    for name in downs:
        layer = by_hand.pipe.unet.get_submodule(name.removeprefix("unet.").removesuffix(".lora_A.weight"))
        up, down = tensors[name.removesuffix("A.weight") + "B.weight"], tensors[name]
        layer.weight.data += (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape)
    torch.testing.assert_close(told(by_hand), told(model.with_tuned(folder)), atol=1e-5, rtol=1e-4)
    assert (told(model) - told(by_hand)).abs().max() > 1e-3


def test_the_student_is_what_is_saved(model, folder, tmp_path):
    task = lora(alpha=6.0)
    trainable = task.trainable(model, Run())
    for p in trainable.parameters:
        p.data.add_(0.1)
    trainable.save(tmp_path)
    torch.testing.assert_close(told(model.with_tuned(tmp_path)), told(trainable.model), atol=1e-5, rtol=1e-4)


def test_kohya_s_names_load_as_the_same_model(model, trained):
    """The file for AUTOMATIC1111 and ComfyUI, read by diffusers' converter of that format."""
    _, folder = trained
    names = load_file(folder / "lora" / KOHYA)
    assert all(name.startswith("lora_unet_") for name in names)
    assert {name.rpartition(".")[2] for name in names} == {"weight", "alpha"}
    other = model.having(unet=copy.deepcopy(model.pipe.unet))
    other.pipe.load_lora_weights(folder / "lora", weight_name=KOHYA)
    torch.testing.assert_close(told(other), told(model.with_tuned(folder)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_only_the_additions_are_trained(model, layers):
    trainable = lora(layers=layers).trainable(model, Run())
    trained = {id(p) for p in trainable.parameters}
    for name, p in trainable.model.pipe.unet.named_parameters():
        assert (id(p) in trained) == ("lora_" in name) == p.requires_grad


def test_all_layers_are_those_of_attention_and_every_convolution_within_blocks(model):
    def tuned(layers):
        unet = lora(layers=layers).trainable(model, Run()).model.pipe.unet
        return {name.partition(".lora_A")[0] for name, _ in unet.named_parameters() if ".lora_A" in name}

    few, more, many = tuned("attention"), tuned("ace"), tuned("all")
    assert few < more < many
    assert {name.partition(".ff.")[2] for name in more - few} == {"net.0.proj"}
    inside = {
        name
        for name, layer in model.pipe.unet.named_modules()
        if isinstance(layer, torch.nn.Conv2d) and name not in ("conv_in", "conv_out")
    }
    assert inside <= many


def test_the_start_is_that_of_the_seed(model):
    one, same, other = (
        [p.detach().clone() for p in lora().trainable(model, Run(seed=s)).parameters] for s in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_base_is_not_copied_and_stays_as_it_was(model, tmp_path):
    unet = model.pipe.unet
    trainable = lora(gradient_checkpointing=True).trainable(model, Run())
    mine = {weight.data_ptr() for weight in trainable.model.pipe.unet.parameters() if not weight.requires_grad}
    assert mine == {weight.data_ptr() for weight in unet.parameters()}
    assert trainable.model.pipe.unet.is_gradient_checkpointing
    assert not unet.is_gradient_checkpointing
    assert not unet.training
    trainable.save(tmp_path)
    tuned = model.with_tuned(tmp_path).pipe.unet
    assert {weight.data_ptr() for weight in unet.parameters()} < {weight.data_ptr() for weight in tuned.parameters()}
    assert not any("lora" in name for name, _ in unet.named_parameters())


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"alpha": -1.0}, {"layers": "none"}])
def test_wrong_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        lora(**wrong)
