"""The demo checkpoint in the real host: what training saw is what stock nodes compute with the exported file."""
import copy
import functools
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import demo_model  # noqa: E402
import demo_styles  # noqa: E402
import train_demo_model as train  # noqa: E402
from inst_pack.inst_core import host  # noqa: E402

TINY = {"model_channels": 32, "num_heads": 2}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def options(folder: Path, *more: str):
    return train.parse(["unet", "--folder", str(folder), "--device", "cpu", "--judged", "0", *more])


def stir(model: torch.nn.Module) -> torch.nn.Module:
    """Untrained layers end in zeros; here every one acts."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            if p.ndim > 1 and not p.any():
                p.copy_(random(*p.shape, seed=i) / torch.Size(p.shape[1:]).numel() ** 0.5)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(options, U-Net, VAE, text encoder, stock MODEL, CLIP, VAE) of one export."""
    import comfy.sd

    folder = tmp_path_factory.mktemp("demo")
    chosen = options(folder, "--output", str(folder / "out"))
    with torch.inference_mode(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_model, "text_encoder", functools.cache(demo_model.text_encoder))  # it takes seconds
        unet, vae = stir(train.build_unet(chosen)), stir(train.build_vae(chosen))
        for name, model in (("unet", unet), ("vae", vae)):
            run = train.Run(folder / f"{name}.pt", copy.deepcopy(model), chosen, 1, 1e-3, 0.9)
            for parameter in run.parameters:
                parameter.data.zero_()  # what counts is the average
            run.save()
        train.export(chosen)
        text = demo_styles.Text(chosen)
    with torch.inference_mode():
        loaded = comfy.sd.load_checkpoint_guess_config(str(folder / "inst-demo.safetensors"),
                                                       embedding_directory=[str(folder)])[:3]
    return chosen, unet, vae, text, *loaded


def test_stock_loader_opens_the_export_as_sd1(exported):
    chosen, *_, model, clip, vae = exported
    assert host.family_of(model) == "SD15"
    assert host.text_widths(clip) == {"clip_l": 768}
    assert type(vae.first_stage_model).__name__ == "TAESD"
    shipped = (chosen.folder / demo_model.SHIPPED.name).read_bytes()
    parts = sorted(chosen.output.iterdir())
    assert len(shipped) <= 48e6 and len(parts) <= 4
    assert b"".join(p.read_bytes() for p in parts) == shipped


def test_the_denoiser_is_the_one_that_was_trained(exported, rounding):
    _, unet, *_, model, _, _ = exported
    z, noise, context = random(2, 4, 16, 16), random(2, 4, 16, 16, seed=1), random(2, 77, 768, seed=2)
    sigmas = train.noise_levels(torch.device("cpu"))
    time_index = torch.tensor([100, 700])
    sigma = sigmas[time_index]
    torch.testing.assert_close(model.model.model_sampling.sigma(time_index.float()), sigma, rtol=1e-5, atol=0)
    noised = z + sigma.view(-1, 1, 1, 1) * noise
    with torch.inference_mode():
        scaled = noised / (1 + sigma.view(-1, 1, 1, 1).square()).sqrt()
        trained = unet(scaled, time_index.float(), context=context)
        rounded = copy.deepcopy(unet)
        rounded.load_state_dict({k: v.float() for k, v in demo_model.unpacked(
            demo_model.packed(unet.state_dict())).items()})
        rounded = rounded(scaled, time_index.float(), context=context)
        stock = model.model.apply_model(noised, sigma, c_crossattn=context)
    predicted = (noised - stock) / sigma.view(-1, 1, 1, 1)
    assert trained.std() > 0.1
    assert (predicted - rounded).norm() / rounded.norm() < max(2e-3, 4 * rounding(model))
    assert (predicted - trained).norm() / trained.norm() < 0.05  # what int8 costs


def test_the_context_is_the_one_that_was_trained(exported):
    chosen, _, _, text, _, clip, _ = exported
    prompts = demo_styles.Prompts(chosen)
    vectors = demo_model.TOKEN_NORM * torch.nn.functional.normalize(random(1, demo_styles.TOKENS, 768), dim=-1)
    sentences = [s for s in demo_styles.SENTENCES if "{}" not in s]
    for row, sentence in enumerate(sentences):
        rows = prompts.generic[0, row][None]
        ours = text(prompts.ids[rows], prompts.place[rows], prompts.count[rows], vectors)
        stock = host.style_conditioning(clip, sentence, {"clip_l": vectors[0]})[0][0]
        assert (ours - stock).norm() / stock.norm() < 2e-3, sentence
    single = prompts.generic[1, 0][None]
    ours = text(prompts.ids[single], prompts.place[single], prompts.count[single], vectors)
    stock = host.style_conditioning(clip, "*", {"clip_l": vectors[0, :1]})[0][0]
    assert (ours - stock).norm() / stock.norm() < 2e-3


def test_the_vae_is_the_one_that_was_trained(exported):
    _, _, autoencoder, _, model, _, vae = exported
    pictures = random(1, 3, 64, 64).sigmoid()
    with torch.inference_mode():
        latent = autoencoder["encoder"](pictures)
        stock = model.model.process_latent_in(vae.encode(pictures.permute(0, 2, 3, 1)))
        assert (stock - latent).norm() / latent.norm() < 0.03
        made = vae.decode(model.model.process_latent_out(latent)).permute(0, 3, 1, 2)
        near = max(0.02, 4 * torch.finfo(vae.vae_dtype).eps)
        assert (made - autoencoder["decoder"](latent).clamp(0, 1)).abs().mean() < near


def test_learning_starts_in_the_middle_of_the_styles(exported):
    start = host.word_vectors(exported[5], "painting")["clip_l"][0]
    torch.testing.assert_close(start, demo_model.TOKEN_NORM * demo_model.neutral_style(), atol=1e-4, rtol=0)


def test_the_gradient_reaches_the_token_undistorted(exported):
    """What a token does to its own place in the context is nearly a rotation and a scale, in every direction."""
    text = exported[3]
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
        table = text.transformer.embeddings.token_embedding.weight
        token = demo_model.TOKEN_NORM * torch.nn.functional.normalize(random(768), dim=0)
        token.requires_grad_()
        embeds = torch.stack([table[49406], token, *table[[49407] * 75]])[None]
        context = text.transformer(embeds=embeds, num_tokens=[1])[0]
        lengths = []
        for seed in range(6):
            direction = torch.nn.functional.normalize(random(768, seed=10 + seed), dim=0)
            back, = torch.autograd.grad(context[0, 1] @ direction, token, retain_graph=True)
            lengths.append(back.norm().item())
            assert torch.nn.functional.cosine_similarity(back, direction, dim=0) > 0.9
        elsewhere, = torch.autograd.grad(context[0, 2:].square().sum(), token)
    assert max(lengths) < 1.2 * min(lengths)
    assert lengths[0] > 10  # layer norm brings a norm of 0.4 to one of 28
    assert elsewhere.isfinite().all()


@pytest.fixture()
def bank(monkeypatch, tmp_path):
    """A text encoder of one layer and a bank of random pairs."""
    monkeypatch.setattr(demo_model, "LAYERS", 1)

    def pairs(count: int, seed: int) -> dict:
        return vars(train.Bank(random(count, 4, 8, 8, seed=seed).half(), random(count, 4, 8, 8, seed=seed + 1).half(),
                               [random(count, n, seed=seed + n).half() for n in (73, 40, 50, 60)],
                               torch.arange(count) % len(demo_styles.WORDS)))

    def make(name: str):
        folder = tmp_path / name
        folder.mkdir()
        torch.save({"training": pairs(12, 0), "held_out": pairs(4, 100)}, folder / "bank.pt")
        return folder

    return make


def test_an_interrupted_training_gives_the_same_bits(bank):
    going = train.Run.going

    def trained(name: str, *stops: int) -> dict:
        folder = bank(name)
        for steps in (*stops, 4):
            chosen = options(folder, "--unet-steps", "4", "--unet-batch", "3", "--log-every", "2")
            with torch.inference_mode(False), pytest.MonkeyPatch.context() as patch:
                def interrupted(run, steps=steps):
                    for step in going(run):
                        if step == steps:  # the process dies: only what was saved is left
                            return
                        yield step
                        run.save()

                patch.setattr(train.Run, "going", interrupted)
                train.train_unet(chosen, train.build_unet(chosen, **TINY))
        return torch.load(folder / "unet.pt", weights_only=True)

    straight, broken = trained("straight"), trained("broken", 1, 3)
    assert straight["step"] == broken["step"] == 4
    for key, value in straight["model"].items():
        assert torch.equal(value, broken["model"][key]), key
    for a, b in zip(straight["average"], broken["average"], strict=True):
        assert torch.equal(a, b)
    assert straight["log"][-1]["loss"] == pytest.approx(broken["log"][-1]["loss"], rel=0.5)


def test_every_kind_of_prompt_is_drawn(bank):
    prompts = demo_styles.Prompts(options(bank("any")))
    words = torch.arange(len(demo_styles.WORDS)).repeat(200)
    rows = prompts.drawn(words, torch.Generator().manual_seed(0))
    share = {"empty": (rows == prompts.empty).float().mean(), "bare": torch.isin(rows, prompts.bare).float().mean(),
             "named": torch.isin(rows, prompts.named).float().mean(),
             "one token": (prompts.count[rows] == 1).float().mean()}
    expected = {"empty": 0.1, "bare": 0.05, "named": 0.2, "one token": 0.3 * 0.85}
    assert all(abs(share[k] - expected[k]) < 0.03 for k in expected), share
    named = torch.isin(rows, prompts.named)
    assert torch.equal(prompts.named[0][words[named]][prompts.count[rows[named]] == demo_styles.TOKENS],
                       rows[named][prompts.count[rows[named]] == demo_styles.TOKENS])  # the picture's own word
    assert prompts.ids.shape[1] == 77
