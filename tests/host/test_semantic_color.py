"""Match Latent Color, semantic: regions that the host's own U-Net sees."""
import pytest
import torch
from inst_pack.nodes.color import InSTMatchColor


def latent(batch: int = 1, seed: int = 0, height: int = 8, width: int = 12) -> dict:
    return {"samples": torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed)) * 2}


def match(content: dict, style: dict, model, method: str = "semantic", **masks) -> torch.Tensor:
    return InSTMatchColor.execute(content, style, method, 1.0, model=model, **masks).result[0]["samples"]


def test_a_pictures_own_regions_are_its_partners(small):
    """Seen by the same network, each region is most like itself, so its own colours come back."""
    content = latent()
    torch.testing.assert_close(match(content, content, small[0]), content["samples"], atol=0.05, rtol=0.05)
    assert (match(content, latent(seed=1), small[0]) - content["samples"]).abs().max() > 0.1


def test_one_look_at_each_picture_and_the_whole_palette(small):
    """Two photographs and a painting of another size: as each photograph alone, with the painting's mean colour."""
    looks = []

    def count(apply, call):
        looks.append(len(call["input"]))
        return apply(call["input"], call["timestep"], **call["c"])

    model, contents, style = small[0].clone(), latent(2), latent(seed=1, width=8)
    model.set_model_unet_function_wrapper(count)
    before = torch.random.get_rng_state()
    both = match(contents, style, model)
    assert sum(looks) == 3 and torch.equal(before, torch.random.get_rng_state())
    torch.testing.assert_close(both.mean((2, 3)), style["samples"].mean((2, 3)).expand(2, -1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(both[:1], match({"samples": contents["samples"][:1]}, style, small[0]), atol=1e-3,
                               rtol=1e-3)


def test_noise_masks_and_pairs_of_masks_come_first(small):
    content, style, noise_mask = latent(), latent(seed=1), torch.zeros(1, 1, 64, 96)
    noise_mask[..., :48] = 1
    out = match({**content, "noise_mask": noise_mask}, style, small[0])
    assert torch.equal(out[..., 7:], content["samples"][..., 7:])
    left = torch.zeros(1, 8, 12)
    left[..., :6] = 1
    masked = [match(content, style, small[0], method, content_mask=left, style_mask=left)
              for method in ("semantic", "mk")]
    torch.testing.assert_close(masked[0][..., :6], masked[1][..., :6])
    assert (masked[0][..., 6:] - masked[1][..., 6:]).abs().max() > 1e-2


def test_without_a_unet_it_is_refused(small):
    with pytest.raises(ValueError, match="method is 'semantic', .* model is not connected"):
        match(latent(), latent(seed=1), None)
