"""The released inference, reproduced through the nodes' own code and the host's model sampling and DDIM sampler.

The golden set's toy noise predictor takes the place of the U-Net (a host model-function wrapper); everything else is
what the nodes run.
"""
import re

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

CASES = re.compile(r"steps(\d+)_strength([\d.]+)_cfg([\d.]+)")


@pytest.fixture(scope="module")
def data(golden):
    return golden("inst_sampling")


def cases(data) -> list[tuple[str, int, float, float]]:
    names = sorted({k.split("/")[0] for k in data.expected if CASES.fullmatch(k.split("/")[0])})
    return [(n, int(m[1]), float(m[2]), float(m[3])) for n in names if (m := CASES.fullmatch(n))]


def toy_noise_predictor(data):
    """eps(x, t, c) of the golden README, on variance-preserving latents."""
    w, p = data.tensor("toy_W"), data.tensor("toy_P")

    def eps(x, t, context):
        s = (context.mean(1) @ p.to(x))[..., None, None]
        smooth = avg_pool2d(pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        u = torch.einsum("oi,bihw->bohw", w.to(x), x - 0.5 * smooth)
        tt = (t / 1000)[:, None, None, None]
        return (u + s * (3 * tt).sin()).tanh() * (0.4 + 0.6 * tt) + 0.35 * x * tt

    return eps


@pytest.fixture()
def toy(small, data):
    """The small MODEL with the toy in the place of its U-Net."""
    model = small[0].clone()
    sampling, eps = model.get_model_object("model_sampling"), toy_noise_predictor(data)

    def wrapper(_, call):
        x, sigma = call["input"], call["timestep"]
        context = call["c"]["c_crossattn"].to(x)
        level = sigma[:, None, None, None]
        return x - level * eps(x / (level**2 + 1).sqrt(), sampling.timestep(sigma), context)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def conditioning(data, name: str) -> list:
    return [[data.array(f"inst/{name}", (1, 77, 768), 1.0), {}]]


def latent(model, data) -> dict:
    return {"samples": model.model.process_latent_out(data.array("inst/z0", (1, 4, 8, 6), 0.9))}


def test_every_case_of_the_released_inference(toy, data, monkeypatch):
    from inst_pack.inst_core.host import sampling
    from inst_pack.nodes.inversion import InSTSample

    monkeypatch.setattr(sampling, "fresh_noise", lambda *_: data.array("inst/q", (1, 4, 8, 6), 1.0))
    z0 = data.array("inst/z0", (1, 4, 8, 6), 0.9)
    assert cases(data)
    for name, steps, strength, cfg in cases(data):
        noised_at, levels = sampling.released_sigmas(toy, strength, steps)
        timestep = toy.get_model_object("model_sampling").timestep
        assert int(timestep(noised_at)) == int(data.expected[f"{name}/t_noise"])
        decoded = [int(timestep(s)) for s in levels[:-1]]
        assert decoded[::-1] == data.expected[f"{name}/ddim_timesteps"].tolist()

        inverted = sampling.invert(toy, conditioning(data, "cond"), latent(toy, data), strength, 0, "released",
                                   steps=steps)
        abar = 1 / (1 + noised_at**2)
        start = levels[0]
        z_enc = (z0 + start * inverted.noise.noise) / (1 + start**2).sqrt()
        torch.testing.assert_close(z_enc, data.tensor(f"{name}/z_enc"), atol=1e-5, rtol=0)
        predicted = (z_enc - abar.sqrt() * z0) / (1 - abar).sqrt()
        torch.testing.assert_close(predicted, data.tensor(f"{name}/predicted_noise"), atol=1e-5, rtol=0)

        out = InSTSample.execute(toy, conditioning(data, "cond"), conditioning(data, "uncond"), latent(toy, data),
                                 steps, cfg, "ddim", "ddim_uniform", strength, 0, "released").result[0]
        found = toy.model.process_latent_in(out["samples"])
        torch.testing.assert_close(found, data.tensor(f"{name}/decoded"), atol=1e-5, rtol=1e-4)


def test_match_color_node_is_the_notebooks_adain(small, data):
    from inst_pack.nodes.color import InSTMatchColor

    content = {"samples": data.array("inst/z0", (1, 4, 8, 6), 0.9)}
    style = {"samples": data.tensor("adain/style_latent")}
    out = InSTMatchColor.execute(content, style, "adain", 1.0).result[0]["samples"]
    torch.testing.assert_close(out, data.tensor("adain/out"), atol=1e-5, rtol=1e-5)
