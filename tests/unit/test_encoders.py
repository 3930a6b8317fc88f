"""Style encoders against the official module's outputs (golden/inst_attentions)."""
import pytest
import torch
from inst_pack.inst_core.encoders import ENCODERS, Attentions, Dropout, PaperEncoder, PictureFeatures, build_encoder


@pytest.fixture(scope="module")
def data(golden):
    return golden("inst_attentions")


@pytest.fixture(scope="module")
def official(data):
    module = Attentions()
    module.load_state_dict(data.state_dict("embeddings.pt"))
    return module.eval()


def features(pictures: int = 1, seed: int = 0) -> PictureFeatures:
    generator = torch.Generator().manual_seed(seed)
    embed = torch.randn(pictures, 768, generator=generator)
    patches = torch.randn(pictures, 257, 1024, generator=generator)
    return PictureFeatures(embed / embed.norm(dim=-1, keepdim=True), patches)


def start(tokens: int = 1, **widths: int) -> dict:
    return {k: torch.full((tokens, w), 0.01) for k, w in (widths or {"clip_l": 768}).items()}


@pytest.mark.parametrize("case", ["single", "multi"])
def test_attentions_match_the_official_module(data, official, case):
    x = data.tensor(f"{case}/x")
    attn1 = official.attn1(x, x)
    attn2 = official.attn2(attn1, x)
    for name, value in (("attn1", attn1), ("attn2", attn2), ("out", official(x))):
        torch.testing.assert_close(value, data.tensor(f"{case}/{name}"), atol=1e-5, rtol=0)


def test_paper_encoder_gives_the_official_placeholder_embedding(data, official):
    encoder = PaperEncoder("clip_l")
    encoder.attention.load_state_dict(official.state_dict())
    seen = PictureFeatures(data.tensor("single/x").view(1, 768), torch.zeros(1, 257, 1024))
    vectors = encoder(seen)["clip_l"]
    torch.testing.assert_close(vectors, data.tensor("single/placeholder_embedding"), atol=1e-5, rtol=0)


def test_dropout_follows_its_generator_only(official):
    x = torch.randn(1, 1, 768, generator=torch.Generator().manual_seed(3))
    before = torch.random.get_rng_state()
    first, again = (official(x, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, official(x))
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_keeps_the_mean():
    out = Dropout()(torch.ones(10000), torch.Generator().manual_seed(0))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.95]) and 0.03 < float((out == 0).float().mean()) < 0.07


def test_attention_encoder_starts_at_the_word_and_adds_what_it_attends_to_in_its_lengths():
    encoder, seen = build_encoder("attention", start(), 3, torch.Generator().manual_seed(0)), features()
    assert torch.equal(encoder(seen)["clip_l"], start(3)["clip_l"])
    torch.nn.init.normal_(encoder.heads["clip_l"].weight, generator=torch.Generator().manual_seed(1))
    patches = encoder.norm(seen.patches)
    once = encoder.queries[None] + encoder.attn1(encoder.queries[None], patches)
    twice = once + encoder.attn2(once, patches)
    word = start(3)["clip_l"]
    expected = word + encoder.heads["clip_l"](twice[0]) * word.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(encoder(seen)["clip_l"], expected, rtol=1e-4, atol=1e-5)


def test_words_move_in_their_own_scale_and_networks_as_they_are():
    """AdamW's steps, its smallest denominator, and no pull towards zero."""
    words = {"clip_l": torch.full((1, 768), 0.0144), "t5xxl": torch.full((1, 4096), 1.44)}
    direct = build_encoder("direct", words, 2, torch.Generator()).parameter_groups(0.005)
    attention = build_encoder("attention", words, 2, torch.Generator().manual_seed(0))
    network, *of_words = attention.parameter_groups(0.001)
    for groups, rate in ((direct, 0.005), (of_words, 0.001)):
        assert [group["lr"] for group in groups] == pytest.approx([rate, 100 * rate], rel=1e-3)
        assert [group["eps"] for group in groups] == pytest.approx([1e-8, 1e-10], rel=1e-3)
        assert all(group["weight_decay"] == 0 for group in groups)
    assert network["lr"] == 0.001 and len(network["params"]) + 2 == len(list(attention.parameters()))
    paper, = ENCODERS["paper"]("clip_l").parameter_groups(1e-4)
    assert paper["lr"] == 1e-4 and "weight_decay" not in paper  # AdamW's own, as in the official code


@pytest.mark.parametrize("name", ["direct", "attention"])
def test_encoders_serve_several_text_encoders_at_once(name):
    encoder = build_encoder(name, start(clip_l=768, clip_g=1280), 5, torch.Generator().manual_seed(0))
    assert {k: tuple(v.shape) for k, v in encoder(features(2)).items()} == {"clip_l": (5, 768), "clip_g": (5, 1280)}


@pytest.mark.parametrize("name", ENCODERS)
def test_same_seed_same_weights_and_the_global_generator_is_untouched(name):
    before = torch.random.get_rng_state()
    first, again = (build_encoder(name, start(), 2, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["paper", "released"])
def test_the_papers_module_is_refused_where_it_cannot_fit(name):
    with pytest.raises(ValueError, match=r"width 768.*clip_g.*'direct' or 'attention'"):
        build_encoder(name, start(clip_l=768, clip_g=1280), 1, torch.Generator())


def test_released_embeds_the_first_picture_paper_their_mean():
    seen = features(2)
    paper, released = ENCODERS["paper"]("clip_l"), ENCODERS["released"]("clip_l")
    released.load_state_dict(paper.state_dict())
    only_first = PictureFeatures(seen.image_embed[:1], seen.patches[:1])
    assert torch.equal(released(seen)["clip_l"], paper(only_first)["clip_l"])
    assert not torch.allclose(paper(seen)["clip_l"], paper(only_first)["clip_l"])


def test_unknown_encoder_is_named():
    with pytest.raises(ValueError, match="'magic'; expected one of direct, attention, paper, released"):
        build_encoder("magic", start(), 1, torch.Generator())
