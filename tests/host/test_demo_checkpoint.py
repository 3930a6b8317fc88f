"""The demo checkpoint in the real host: what stock nodes compute with it is what was trained."""
import functools
import logging
from pathlib import Path

import comfy.sd
import pytest
import torch
from conftest import MODELS
from demo_model import checkpoint, networks, prompts, text, widen
from demo_model import pairs_file as files
from demo_model.denoiser import CROPS_OF_ONE, drawn, find_words, weighted_loss
from inst_pack.inst_core import host
from inst_pack.inst_core.encoders import PictureFeatures, build_encoder
from inst_pack.inst_core.learning import Painting, learn_style
from inst_pack.inst_core.recipes import Recipe
from inst_pack.inst_core.style import Style
from inst_pack.nodes.inversion import InSTSample

import nodes as host_nodes

LORA, CONTROLNET = "inst-small-lora.safetensors", "inst-small-demo-controlnet.safetensors"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def shipped() -> checkpoint.Shipped:
    return checkpoint.open_shipped()


@pytest.fixture(scope="module")
def narrow(shipped):
    """The U-Net that was trained."""
    with torch.inference_mode(False):
        model = networks.build_unet()
        model.load_state_dict(shipped.unet)
    return model


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    """The checkpoint that tools/dev.py put together, or one of our own."""
    made = Path(MODELS, "checkpoints", "inst-demo.safetensors")
    if not made.exists():
        made = tmp_path_factory.mktemp("demo") / made.name
        checkpoint.join(checkpoint.SHIPPED, made)
    return made


@pytest.fixture(scope="module")
def opened(joined):
    """(MODEL, CLIP, VAE) as stock Load Checkpoint returns them."""
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(joined), embedding_directory=[str(joined.parent)])[:3]


@pytest.fixture(scope="module")
def reader(shipped) -> prompts.Reader:
    return prompts.Reader(prompts.StyleSpace.read(shipped.space))


def test_widening_computes_the_same_through_the_hosts_own_unet(narrow):
    """Random numbers in every layer; with one channel in each group of a norm, the time would not be seen."""
    with torch.no_grad(), torch.inference_mode(False):
        small, wide = networks.build_unet(width=64), networks.build_unet(width=128)
        small.load_state_dict({k: w + 0.1 * random(*w.shape, seed=i)
                               for i, (k, w) in enumerate(small.state_dict().items())})
        wide.load_state_dict(widen.widened(small.state_dict()))
        x, timestep, context = 3 * random(2, 4, 16, 16), torch.tensor([700, 33]), random(2, 77, 768)
        ours, theirs = (networks.predicted_noise(m, x, timestep, context) for m in (small, wide))
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_padding_computes_the_same_through_the_hosts_own_taesd(shipped):
    from comfy.taesd.taesd import TAESD

    with torch.inference_mode(False), torch.no_grad():
        ours, theirs = networks.build_autoencoder(), TAESD()
        ours.load_state_dict(shipped.autoencoder)
        theirs.load_state_dict({f"taesd_{k}": v for k, v in widen.padded(shipped.autoencoder).items()}, strict=False)
        pictures = random(1, 3, 64, 64).sigmoid()
        latent = ours["encoder"](pictures)
        torch.testing.assert_close(theirs.taesd_encoder(pictures), latent, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs.taesd_decoder(latent), ours["decoder"](latent), atol=1e-5, rtol=1e-5)


def test_stock_load_checkpoint_gives_the_trained_denoiser(opened, narrow, rounding):
    model, clip, _ = opened
    assert host.families.family_of(model) == "SD15" and host.text.text_widths(clip) == {"clip_l": 768}
    timestep = torch.tensor([700, 100])
    sigma = networks.noise_levels()[timestep]
    torch.testing.assert_close(model.model.model_sampling.sigma(timestep.float()), sigma, rtol=1e-5, atol=0)
    x, context = 3 * random(2, 4, 16, 16), random(2, 77, 768)
    denoised = model.model.apply_model(x, sigma, c_crossattn=context)
    trained = networks.predicted_noise(narrow, x, timestep, context)
    found = (x - denoised) / sigma.view(-1, 1, 1, 1)
    assert (found - trained).abs().max() < max(1e-4, 40 * rounding(model))


def test_stock_load_checkpoint_gives_the_trained_autoencoder(opened, shipped):
    model, _, vae = opened
    with torch.inference_mode(False), torch.no_grad():
        ours = networks.build_autoencoder()
        ours.load_state_dict(shipped.autoencoder)
        pictures = random(1, 3, 64, 64).sigmoid()
        latent = ours["encoder"](pictures)
        expected = ours["decoder"](latent).clamp(0, 1)
    near = max(1e-3, 8 * torch.finfo(vae.vae_dtype).eps)
    found = model.model.process_latent_in(vae.encode(pictures.permute(0, 2, 3, 1)))
    torch.testing.assert_close(found.float(), latent, atol=4 * near, rtol=near)
    made = vae.decode(model.model.process_latent_out(latent)).permute(0, 3, 1, 2)
    assert (made.float() - expected).abs().max() < 4 * near


def test_the_context_is_the_one_that_was_trained(opened, reader):
    _, clip, _ = opened
    for tokens in (prompts.TOKENS, 1):
        words = text.TOKEN_NORM * torch.nn.functional.normalize(random(tokens, 768), dim=-1)
        given = words.expand(prompts.TOKENS, -1)[None] if tokens == 1 else words[None]
        for sentence in sorted({s for s in prompts.SENTENCES if "{}" not in s}):
            row = torch.tensor([reader.prompts.row(sentence, tokens)])
            assert row.item() < len(reader.prompts.ids)  # known already
            ours = reader.of_rows(row, given)
            stock = host.text.style_conditioning(clip, sentence, {"clip_l": words})[0][0]
            assert (ours - stock).norm() / stock.norm() < 2e-3, sentence
    torch.testing.assert_close(host.text.word_vectors(clip, "painting")["clip_l"][0],
                               text.TOKEN_NORM * text.neutral_style(), atol=1e-4, rtol=0)  # where learning starts


def test_places_behind_all_prompts_are_the_same(reader):
    """What training computes once for a batch."""
    ids, own = reader.prompts.ids, reader.prompts.own_places
    assert (ids[:, own:] == ids[reader.prompts.empty, own:]).all() and own < 40
    with torch.inference_mode(False):
        shared, separate = networks.build_unet(32, own_places=own), networks.build_unet(32)
        x, timestep = random(2, 4, 16, 16), torch.tensor([700, 33])
        context = reader.told(random(2, 100, seed=3).clone())
        losses = [networks.predicted_noise(m, x, timestep, context.clone()).square().sum() for m in (shared, separate)]
        for model, loss in zip((shared, separate), losses, strict=True):
            for name, weight in model.named_parameters():  # untrained layers end in zeros: here every one acts
                weight.data += 0.05 * random(*weight.shape, seed=len(name))
            del loss
        predicted = [networks.predicted_noise(m, x, timestep, context.clone()) for m in (shared, separate)]
    torch.testing.assert_close(predicted[0], predicted[1], atol=1e-5, rtol=1e-4)


def test_the_denoiser_reads_the_words_of_a_style(narrow, reader):
    """Other words, and words found on the picture, change what it predicts; samples are made of both kinds."""
    count = 2
    latents = random(count, 4, 1, 1) + 0.3 * random(count, 4, 32, 32, seed=1)
    vectors = reader.space.mean + random(count, 100, seed=2)
    find = functools.partial(find_words, narrow, reader, torch.Generator().manual_seed(0), False)
    with torch.inference_mode(False), torch.enable_grad():
        found = find(latents.clone())
        pairs = files.Pairs(*(x.clone() for x in (latents, latents, vectors, vectors[:, None].expand(-1, 2, -1))))
        samples = drawn(pairs, reader, 0, count * CROPS_OF_ONE, torch.Generator().manual_seed(0), find)
    assert len(samples.x) == count * CROPS_OF_ONE and weighted_loss(samples.noise, samples) == 0
    star = torch.full((count,), reader.prompts.star)
    contexts = reader.told(vectors), reader.told(vectors.roll(1, 0)), reader.of_rows(star, found), reader.empty(count)
    x, timestep = latents + networks.noise_levels()[700] * random(*latents.shape, seed=3), torch.full((count,), 700)
    outputs = [networks.predicted_noise(narrow, x, timestep, context) for context in contexts]
    for other in outputs[1:]:
        assert (outputs[0] - other).norm() / outputs[0].norm() > 0.02


# ---- what people put beside it ----

def sampled(model, positive, negative) -> torch.Tensor:
    content = {"samples": random(1, 4, 8, 8) * 4}
    return InSTSample.execute(model, positive, negative, content, 2, 1.5, "euler", "normal", 0.7, 0,
                              "matched").result[0]["samples"]


def test_lora_and_controlnet_load_and_act(opened, caplog):
    model, clip, _ = opened
    positive = host.text.style_conditioning(clip, "*", {"clip_l": 0.02 * random(2, 768)})
    negative = host_nodes.CLIPTextEncode().encode(clip, "")[0]
    plain = sampled(model, positive, negative)
    patched = host_nodes.LoraLoader().load_lora(model, clip, LORA, 1.0, 1.0)[0]
    assert (sampled(patched, positive, negative) - plain).abs().max() > 1e-2
    net = host_nodes.ControlNetLoader().load_controlnet(CONTROLNET)[0]
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        controlled = host_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, net, hint, 1.0, 0.0, 1.0)
        assert (sampled(model, *controlled) - plain).abs().max() > 1e-2
    assert not [r for r in caplog.records if "control" in r.message]  # each of its outputs found its place


@pytest.mark.parametrize("encoder", ["direct", "attention", "paper"])
def test_every_encoder_lowers_the_held_out_loss(opened, encoder):
    """Of a two-coloured painting of stripes."""
    model, clip, vae = opened
    waves = (torch.linspace(0, 25, 64).sin() / 2 + 0.5)[:, None, None]
    pixels = (waves * torch.tensor([0.9, 0.3, 0.1]) + (1 - waves) * torch.tensor([0.1, 0.2, 0.7])).expand(64, 64, 3)
    latent = host.vision.encode_latent(vae, model, pixels[None]).cpu().clone()
    embed = torch.nn.functional.normalize(random(1, 768), dim=-1)
    features = PictureFeatures(embed, random(1, 257, 1024, seed=1))
    rate, tokens = {"direct": (1e-2, 4), "attention": (4e-3, 4), "paper": (4e-3, 1)}[encoder]
    with host.training.training_mode():
        module = build_encoder(encoder, host.text.word_vectors(clip, "painting"), tokens,
                               torch.Generator().manual_seed(0))
        with host.training.training_session(model, clip, "*", tokens) as session:
            learned = learn_style(session, module, Painting(latent, latent, features),
                                  Recipe(encoder, tokens, steps=8, batch=1, rate=rate))
    assert learned.kept < 0.97 * learned.checks[0].loss
    assert Style(learned.vectors).vectors["clip_l"].shape == (tokens, 768)
