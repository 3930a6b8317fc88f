"""What the tests wire around the nodes, on the small SD 1.x checkpoint."""
import torch
from inst_pack.inst_core.style import Style
from inst_pack.nodes.learn import InSTLearnStyle

import nodes as host_nodes


def random_style(tokens: int = 2, seed: int = 0) -> Style:
    vectors = torch.randn(tokens, 768, generator=torch.Generator().manual_seed(seed)) * 0.02
    return Style({"clip_l": vectors}, family="SD15")


def stock(clip, text: str) -> list:
    """The CONDITIONING of CLIP Text Encode."""
    return host_nodes.CLIPTextEncode().encode(clip, text)[0]


def content(batch: int = 1, height: int = 8, width: int = 8) -> dict:
    """A LATENT."""
    return {"samples": torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(0)) * 4}


def learn(small, image, encoder: str = "direct", **more):
    """Learn InST Style for a moment, on a small picture."""
    arguments = {"tokens": 2, "steps": 2, "learning_rate": 0.0, "batch_size": 1, "seed": 0, "resolution": 64, **more}
    return InSTLearnStyle.execute(*small, image, encoder, **arguments)


def differ(a: torch.Tensor, b: torch.Tensor, by: float = 1e-3) -> bool:
    return float((a - b).abs().max()) > by


def close(a: torch.Tensor, b: torch.Tensor, near: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=near, rtol=1e-4)
