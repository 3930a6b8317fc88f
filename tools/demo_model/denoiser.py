"""Training of the denoiser on pairs of latents, along img2img's own trajectory.

Sampling that starts at a photograph p at level sigma_s and ends at its repainted version z runs, for a perfect
denoiser, along z + sigma n' with one noise n' = n + (p - z) / sigma_s on all levels.  So that is what is learned: the
photograph's residual rides in the noise, and predicting the noise is style transfer.  A part of the samples has no
photograph in it, which is what learning a style from one painting minimises.

Styles are told in two ways: by the teacher's numbers, and in words found as learning a style begins to find them, by
the gradient of the loss of the picture alone.  So words that a user learns mean what told ones mean (first-order
meta-learning, Finn et al. 2017).
"""
import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from whole import copy_whole, read_tensors, save_tensors

from . import networks
from .networks import noise_levels, predicted_noise
from .pairs_file import PATTERN, Pairs, read_pairs
from .prompts import TOKENS, Reader, StyleSpace, word_noise
from .sampling import repainted
from .sheets import save_sheet
from .training import Progress, Training, crops, random_corners, say

STAGE = "denoiser"
WEIGHTS, TRAINING, SPACE, AUTOENCODER = "unet.safetensors", "unet.training.pt", "space.safetensors", "vae.safetensors"
RATES = 2e-3, 1e-3  # Muon, AdamW
BATCH = 32
CROP = 16  # places of a latent; whole latents now and then, with fewer samples
WHOLE_EVERY = 5
ALONE = 0.25  # of the samples have no photograph in their noise; half of these are told as the picture measures
PHOTOGRAPH_ALONE = 0.3  # of the latter are photographs
IN_OWN_STYLE = 0.06  # of the samples are photographs told their own style: they stay what they are
STARTS = 300, 850  # timesteps where img2img may start
OTHER_SHARE = 0.2  # of the photographs ride with 0 to 2 times their residual, as stochastic inversion makes them
MIN_SNR = 5.0  # Hang et al. 2023
WORD_NOISE = 1.6  # longest noise on the words, beside 1.5 that sets a style apart: what an optimizer leaves there
CROPS_OF_ONE = 4  # crops of a pair in a batch, which together tell the direction of its style
FOUND, BOTH = 0.4, 0.2  # of the styles are told in words that were found, and in words between found and told ones
FOUND_REACH = 0.35, 1.25  # how far words are found from the neutral one, in its length
JUDGE_EVERY = 1000
JUDGED = 100, 300, 500, 700, 900  # timesteps
SHEET = 6  # held-out pairs on the sheet


# ---- samples ----

class Samples(NamedTuple):
    """What one step sees.

    Attributes:
        x: noisy latents (B, 4, h, w); timestep: (B,); context: (B, 77, 768); noise: what is to be predicted.
    """

    x: Tensor
    timestep: Tensor
    context: Tensor
    noise: Tensor

    def to(self, device: torch.device) -> "Samples":
        return Samples(*(part.to(device) for part in self))


def told(pairs: Pairs, kind: Tensor, photograph: Tensor) -> tuple[Tensor, Tensor]:
    """(target latents, style vectors) of a batch: what is painted, and in which words.

    Args:
        kind: (B,) in [0, 1), which decides what a sample is for.
        photograph: (B,) whether a sample that is told as it measures is the photograph instead of the target.
    """
    as_measured = kind < ALONE / 2
    flipped = as_measured & photograph
    unchanged = (kind >= ALONE) & (kind < ALONE + IN_OWN_STYLE)
    is_photo = (flipped | unchanged)[:, None]
    own = torch.where(is_photo, pairs.own[:, 1], pairs.own[:, 0])
    style = torch.where(is_photo | as_measured[:, None], own, pairs.style)
    return torch.where(is_photo[..., None, None], pairs.photo.float(), pairs.target.float()), style


def cropped(latents: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The same CROP x CROP places of each, other ones for every sample."""
    corners = random_corners(latents[0], CROP, generator)
    return [crops(latent, corners, CROP) for latent in latents]


def noise_with_photograph(photo: Tensor, target: Tensor, alone: Tensor, generator: torch.Generator,
                          ) -> tuple[Tensor, Tensor]:
    """(noise, timesteps) of samples: Gaussian noise plus the photograph's residual over the level where img2img starts,
    at a timestep at or below that start.  ``alone``: (B,) samples without the photograph, from any level."""
    def uniform() -> Tensor:
        return torch.rand(len(photo), generator=generator)

    first, last = STARTS
    start = torch.where(alone, 999.0, first + (last - first) * uniform()).long()
    share = torch.where(uniform() < OTHER_SHARE, 2 * uniform(), 1.0).masked_fill(alone, 0.0)
    timestep = (uniform() * (start + 1)).long().clamp(max=999)
    residual = (share / noise_levels()[start]).view(-1, 1, 1, 1) * (photo - target)
    return torch.randn(target.shape, generator=generator) + residual, timestep


def find_words(unet: nn.Module, reader: Reader, generator: torch.Generator, bfloat16: bool, target: Tensor) -> Tensor:
    """Words (B, TOKENS, 768) for pictures (B, 4, h, w): from the neutral one along the gradient of the picture's own
    loss, all noise levels alike, by a length drawn from FOUND_REACH."""
    clean, = cropped([target.repeat_interleave(CROPS_OF_ONE, 0)], generator)
    many, device = len(clean), next(unet.parameters()).device
    spread = torch.arange(CROPS_OF_ONE).repeat(len(target)) + torch.rand(many, generator=generator)
    timestep = (1000 * spread / CROPS_OF_ONE).long().clamp(max=999)
    noise = torch.randn(clean.shape, generator=generator)
    neutral = reader.space.neutral_word().expand(len(target), TOKENS, -1)
    words = neutral.clone().requires_grad_()
    context = reader.of_rows(torch.full((many,), reader.prompts.star), words.repeat_interleave(CROPS_OF_ONE, 0))
    x = clean + noise_levels()[timestep].view(-1, 1, 1, 1) * noise
    predicted = predicted_noise(unet, x.to(device), timestep.to(device), context.to(device), bfloat16)
    error = (predicted - noise.to(device)).square().mean((1, 2, 3))
    gradient, = torch.autograd.grad((error / error.detach()).sum(), words)
    least, most = FOUND_REACH
    reach = least + (most - least) * torch.rand(len(target), 1, 1, generator=generator)
    return neutral - reach * neutral.norm(dim=-1, keepdim=True) * F.normalize(gradient, dim=-1)


def mix(told_words: Tensor, found: Tensor, generator: torch.Generator) -> Tensor:
    """Words (B, TOKENS, 768) of a batch: told (B, 768), found (B, TOKENS, 768), or between the two."""
    kind, between = torch.rand(2, len(found), 1, 1, generator=generator)
    share = torch.where(kind < FOUND, 1.0, torch.where(kind < FOUND + BOTH, between, 0.0))
    return torch.lerp(told_words[:, None].expand_as(found), found, share)


def drawn(pairs: Pairs, reader: Reader, step: int, batch: int, generator: torch.Generator,
          find: Callable[[Tensor], Tensor]) -> Samples:
    """The samples of a step: CROPS_OF_ONE of each pair.

    Args:
        find: words of pictures (B, 4, h, w), as ``find_words`` gives them.
    """
    whole = step % WHOLE_EVERY == WHOLE_EVERY - 1
    styles = max(1, batch // CROPS_OF_ONE // (4 if whole else 1))
    many, chosen = styles * CROPS_OF_ONE, pairs[torch.randint(len(pairs), (styles,), generator=generator)]
    kind, other = torch.rand(2, styles, generator=generator)
    target, style = told(chosen, kind, other < PHOTOGRAPH_ALONE)
    words = mix(reader.space.words(style, word_noise(styles, WORD_NOISE, generator)), find(target), generator)
    target, photo, kind, words = (x.repeat_interleave(CROPS_OF_ONE, 0)
                                  for x in (target, chosen.photo.float(), kind, words))
    if not whole:
        target, photo = cropped([target, photo], generator)
    context = reader.of_rows(reader.prompts.drawn(many, generator), words)
    noise, timestep = noise_with_photograph(photo, target, kind < ALONE, generator)
    return Samples(target + noise_levels()[timestep].view(-1, 1, 1, 1) * noise, timestep, context, noise)


def weighted_loss(predicted: Tensor, samples: Samples) -> Tensor:
    """Mean squared error of the noise, with min-SNR weights."""
    snr = noise_levels().to(predicted.device)[samples.timestep].square().reciprocal()
    errors = (predicted - samples.noise).square().mean((1, 2, 3))
    return (errors * (snr.clamp(max=MIN_SNR) / snr)).mean()


# ---- judging ----

@torch.no_grad()
def judge(unet: nn.Module, reader: Reader, pairs: Pairs, device: torch.device,
          bfloat16: bool) -> dict[str, list[float]]:
    """Loss on the held-out targets at JUDGED timesteps: told as they measure, as another measures, and nothing."""
    target, own = pairs.target.float(), pairs.own[:, 0]
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    contexts = {"right": reader.told(own), "wrong": reader.told(own.roll(1, 0)), "none": reader.empty(len(own))}
    losses = {name: [] for name in contexts}
    for at in JUDGED:
        timestep = torch.full((len(target),), at)
        x = target + noise_levels()[at] * noise
        for name, context in contexts.items():
            parts = [predicted_noise(unet, *(part.to(device) for part in sample), bfloat16).cpu()
                     for sample in zip(*(a.split(16) for a in (x, timestep, context)), strict=True)]
            losses[name].append((torch.cat(parts) - noise).square().mean().item())
    return losses


@torch.no_grad()
def sheet(path: Path, unet: nn.Module, autoencoder: nn.ModuleDict, reader: Reader, pairs: Pairs, device: torch.device,
          bfloat16: bool) -> None:
    """Rows: photographs, the teacher's pictures, ours from fresh noise, ours with stochastic inversion."""
    few = pairs[torch.linspace(0, len(pairs) - 1, min(SHEET, len(pairs))).long()]
    photo, target = few.photo.float().to(device), few.target.float().to(device)
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0)).to(device)
    contexts = reader.told(few.style).to(device), reader.empty(len(few)).to(device)
    ours = [repainted(unet, photo, noise, *contexts, invert=invert, bfloat16=bfloat16) for invert in (False, True)]
    save_sheet(path, [autoencoder["decoder"](z) for z in (photo, target, *ours)])


# ---- the stage ----

def adopt(sources: list[Path], folder: Path) -> None:
    """Copies what training goes on from, unless the folder has it: weights, space and pairs of the first source that
    has each."""
    for pattern in (WEIGHTS, AUTOENCODER, SPACE, PATTERN):
        if any(folder.glob(pattern)):
            continue
        for path in next(filter(None, (sorted(source.glob(pattern)) for source in sources)), ()):
            copy_whole(path, folder / path.name)
            say(STAGE, f"took {path}")


def load_autoencoder(folder: Path) -> nn.ModuleDict:
    model = networks.build_autoencoder()
    model.load_state_dict({k: v.float() for k, v in read_tensors(folder / AUTOENCODER)[0].items()})
    return model.eval().requires_grad_(False)


def load_unet(folder: Path, own_places: int | None = None) -> tuple[nn.Module, int]:
    """(model, steps behind it); a fresh one where the folder has none."""
    model, step = networks.build_unet(own_places=own_places), 0
    if (folder / WEIGHTS).exists():
        weights, metadata = read_tensors(folder / WEIGHTS)
        model.load_state_dict({k: v.float() for k, v in weights.items()})
        step = int(metadata.get("step", 0))
    return model, step


def load_reader(folder: Path, pairs: Pairs) -> Reader:
    """The folder's space of styles; from all that was measured, where it has none yet."""
    path = folder / SPACE
    if not path.exists():
        space = StyleSpace.of(torch.cat([pairs.style, pairs.own.flatten(0, 1)]))
        save_tensors(path, {"mean": space.mean, "map": space.map})
    return Reader(StyleSpace.read(read_tensors(path)[0]))


def go_on(options: argparse.Namespace) -> None:
    """The stage that begins with what other folders have."""
    adopt(options.sources, options.folder)
    train(options)


def train(options: argparse.Namespace) -> None:
    """Trains the denoiser for some minutes; begins anew or goes on, whatever the folder holds."""
    folder, device = options.folder, options.device
    networks.host(device.type == "cpu")
    pairs, held_out = read_pairs(folder)
    reader = load_reader(folder, pairs)
    unet, step = load_unet(folder, reader.prompts.own_places)
    unet, autoencoder = unet.to(device), load_autoencoder(folder).to(device)
    run = Training(STAGE, folder / TRAINING, unet, RATES,
                   lambda name, _: name.startswith(("time_embed", "input_blocks.0.0", "out.2")), step)
    say(STAGE, f"{len(pairs)} pairs, {len(held_out)} held out; {options.minutes:g} minutes from step {run.step}")

    def keep() -> None:
        save_tensors(folder / WEIGHTS, {k: v.half() for k, v in run.averaged.state_dict().items()},
                     {"step": str(run.step), "width": str(networks.WIDTH)})

    def look() -> None:
        for name, losses in judge(run.averaged, reader, held_out, device, options.bfloat16).items():
            say(STAGE, f"step {run.step}, told {name}: " + " ".join(f"{loss:.4f}" for loss in losses))
        sheet(folder / "denoiser.png", run.averaged, autoencoder, reader, held_out, device, options.bfloat16)

    progress = Progress(STAGE)
    for step in run.going(options.minutes, keep, options.finish):
        find = partial(find_words, unet, reader, run.generator, options.bfloat16)
        samples = drawn(pairs, reader, step, BATCH, run.generator, find).to(device)
        predicted = predicted_noise(unet, samples.x, samples.timestep, samples.context, options.bfloat16)
        loss = weighted_loss(predicted, samples)
        run.learn(loss)
        progress.note(run.step, loss=loss.item())
        if run.step % JUDGE_EVERY == 0:
            look()
    look()
    say(STAGE, f"step {run.step}: {folder / WEIGHTS}, to look at: {folder / 'denoiser.png'}")
