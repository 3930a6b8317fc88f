"""Pictures larger than the model: scaled to its size, or looked at in tiles."""
import pytest
import torch
from inst_pack.inst_core import host
from inst_pack.nodes.inversion import InSTSample
from inst_pack.nodes.size import InSTFitToModel, InSTTileModel

import nodes as host_nodes


@pytest.mark.parametrize("size, scale, fitted", [((768, 576), 1.0, (592, 448)), ((100, 100), 0.25, (128, 128)),
                                                ((3000, 200), 1.0, (1984, 128))])
def test_a_photograph_is_scaled_whole_to_the_models_size(small, size, scale, fitted):
    picture = torch.rand(1, size[1], size[0], 3)
    result = InSTFitToModel.execute(picture, small[0], scale).result[0]
    assert result.shape == (1, fitted[1], fitted[0], 3)


@pytest.fixture()
def repaint(small):
    model, clip, vae = small
    conditioning = host_nodes.CLIPTextEncode().encode(clip, "a hill")[0]

    def run(height: int, width: int, tile: int) -> torch.Tensor:
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        latent = {"samples": torch.stack([(5 * x).sin(), (4 * y).cos(), x * y, x - y])[None]}
        tiled = InSTTileModel.execute(model, tile, 0.5).result[0]
        return InSTSample.execute(tiled, conditioning, conditioning, latent, 2, 2.0, "ddim", "ddim_uniform", 0.5, 0,
                                  "matched").result[0]["samples"]

    return run


def test_tiles_change_nothing_below_their_size_and_bound_what_the_model_sees(small, repaint, monkeypatch):
    seen = []
    plain = type(small[0].model).apply_model

    def watched(self, x, *given, **more):
        seen.append(tuple(x.shape[-2:]))
        return plain(self, x, *given, **more)

    whole = repaint(8, 16, 1024)
    monkeypatch.setattr(type(small[0].model), "apply_model", watched)
    assert torch.equal(whole, repaint(8, 16, 512))
    seen.clear()
    tiled = repaint(8, 16, 64)
    assert set(seen) == {(8, 8)} and tiled.shape == whole.shape and torch.isfinite(tiled).all()
    assert not torch.equal(tiled, whole)
    steps = tiled.diff(dim=-1).abs().mean(dim=(0, 1, 2))  # from column to column; tiles begin at 0, 4 and 8
    assert steps[[3, 7, 11]].max() < 2 * steps.median() + 0.1


def test_a_wrapper_that_was_there_goes_on_working(small):
    model, called = small[0].clone(), []

    def before(apply, given):
        called.append(1)
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(before)
    tiled = host.size.tile_model(model, 64, 0.25)
    wrapper = tiled.model_options["model_function_wrapper"]
    result = wrapper(lambda x, t, **c: x, {"input": torch.ones(1, 4, 8, 20), "timestep": None, "c": {}})
    assert len(called) == 3 and torch.allclose(result, torch.ones(1, 4, 8, 20))
