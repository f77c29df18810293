"""The transformers: their sizes, what a token sees, and the memory of Transformer-XL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.models import ModelConfig, build_model, models
from largebatch.nn import NormConfig

SMALL = {"layers": 2, "heads": 2, "width": 16}


def build(name: str, dtype: torch.dtype = torch.float64, **keys: Any) -> nn.Module:
    config = ModelConfig(name=name, **{**SMALL, **keys})
    offers = {"vocabulary": 11, "context": 12}
    if name == "transformer_xl":
        offers["streams"] = 3
    return build_model(config, NormConfig(), offers, dtype, seed=0)


def tokens(n: int, length: int) -> Tensor:
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "vocabulary", "context", "count"),
    [("gpt", 50257, 1024, 124_439_808), ("bert", 30522, 512, 109_512_762)],
)
def test_published_sizes(name: str, vocabulary: int, context: int, count: int) -> None:
    with torch.device("meta"):
        model = models.entry(name).factory(vocabulary, context, layers=12, heads=12, width=768)
    assert sum(p.numel() for p in model.parameters()) == count


def test_gpt_sees_nothing_that_comes_later() -> None:
    model, text = build("gpt"), tokens(3, 12)
    before, changed = model(text), text.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 11
    assert torch.equal(before[:, :7], model(changed)[:, :7])
    assert not torch.allclose(before[:, 7:], model(changed)[:, 7:])
    assert torch.allclose(model(text[:, :5]), before[:, :5], atol=1e-12)


def test_bert_sees_both_sides_and_answers_where_it_is_asked() -> None:
    model, text = build("bert"), tokens(3, 12)
    everywhere, places = model(text), torch.tensor([0, 13, 35])
    asked = model(text, places)
    assert torch.allclose(asked, everywhere.flatten(0, 1)[places], atol=1e-12)
    changed = text.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    assert not torch.allclose(everywhere[:, 0], model(changed)[:, 0])


@pytest.mark.parametrize("window", [1, 3, 4, 12])
def test_memory_is_the_same_as_one_pass(window: int) -> None:
    """Windows one after the other, each with all before it remembered, are one long window."""
    model, text = build("transformer_xl", memory=12), tokens(3, 12)
    whole, _ = model(text)
    memory, parts = None, []
    for start in range(0, 12, window):
        logits, memory = model(text[:, start : start + window], memory)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-10, rtol=0)
    # ... and changes what is read, or there would be nothing to test.
    without, _ = model(text[:, 12 - window :])
    assert (window == 12) == torch.allclose(without, whole[:, 12 - window :], atol=1e-6)


def test_a_memory_of_two_layers_reaches_further_than_its_length() -> None:
    model, text = build("transformer_xl", memory=3), tokens(2, 12)

    def last(text: Tensor) -> Tensor:
        memory = None
        for start in range(0, 12, 3):
            logits, memory = model(text[:, start : start + 3], memory)
        assert memory.shape == (2, 2, 3, 16) and not memory.requires_grad
        return logits[:, 0]  # at token 9, whose own memory is tokens 6 to 8

    near, far = text.clone(), text.clone()
    near[:, 4] = (near[:, 4] + 1) % 11  # two layers reach back to token 3
    far[:, 2] = (far[:, 2] + 1) % 11
    assert not torch.equal(last(text), last(near))
    assert torch.equal(last(text), last(far))


def test_attention_by_distance_is_the_formula_written_out() -> None:
    from largebatch.models.transformer_xl import RelativeAttention, _sinusoids

    torch.manual_seed(0)
    attention = RelativeAttention(8, 2, 0.0).double()
    x, memory = torch.randn(1, 3, 8).double(), torch.randn(1, 2, 8).double()
    u, v = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    hidden = torch.arange(5)[None, :] > torch.arange(2, 5)[:, None]
    found = attention(x, memory, _sinusoids(5, x), hidden, u, v)
    both = torch.cat((memory, x), dim=1)[0]
    q = attention.query(x)[0].view(3, 2, 4)
    k, value = attention.key_value(both).view(5, 2, 2, 4).unbind(1)
    by_distance = attention.distance(_sinusoids(5, x).flip(0)).view(5, 2, 4)  # 0 first
    expected = torch.zeros(3, 2, 4).double()
    for i in range(3):
        for head in range(2):
            scores = torch.stack([
                ((q[i, head] + u[head]) @ k[j, head]
                 + (q[i, head] + v[head]) @ by_distance[i + 2 - j, head]) / 2
                for j in range(i + 3)
            ])  # fmt: skip
            expected[i, head] = scores.softmax(0) @ value[: i + 3, head]
    assert torch.allclose(found[0], attention.out(expected.view(3, 8)), atol=1e-12)


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer_xl"])
def test_an_output_layer_of_its_own(name: str) -> None:
    tied, own = build(name), build(name, tied_embeddings=False)
    count = [sum(p.numel() for p in model.parameters()) for model in (tied, own)]
    assert count[1] - count[0] == 11 * 16
    assert {"head.weight"} == own.state_dict().keys() - tied.state_dict().keys()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.width=15: .* model.heads=2; take 14"):
        build("gpt", width=15)
    with pytest.raises(UserError, match=r"extent=13: model.name=gpt has positions for data"):
        build("gpt")(tokens(1, 13))
    with pytest.raises(UserError, match=r"model.memory=4: model.name=gpt has no such option"):
        build("gpt", memory=4)
    with pytest.raises(UserError, match=r"model.name=f1: takes no text.*choose from .*gpt"):
        build_model(ModelConfig(name="f1"), NormConfig(), {"vocabulary": 9, "context": 8})
    with pytest.raises(UserError, match=r"model.layers=0: must be 1 or more"):
        build("gpt", layers=0)
    with pytest.raises(UserError, match=r"model.classifier=hadamard: the data have no classes"):
        build("gpt", classifier="hadamard")
