"""Training of the autoencoder, and later of its decoder alone.

``train`` learns both halves on photographs and on the teacher's pictures, half and half.  ``train_decoder`` then goes
on with the decoder, on what the denoiser really gives: latents that it made of a photograph, which should look
like the teacher's picture of it.  The encoder, and so every latent, stays as it is.
"""
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from whole import read_tensors, save_tensors

from . import networks, pictures
from .commands import WEIGHTS
from .denoiser import AUTOENCODER, load_autoencoder, load_reader, load_unet
from .networks import LATENT_STEP, encoded, noise_levels, predicted_noise
from .pairs import LATENTS, digest_of, encode, picture_files
from .pairs_file import Pairs, read_pairs
from .sheets import save_sheet
from .training import Progress, Training, crops, random_corners, say

RATE = 2e-3
BATCH, CROP = 8, 128
LPIPS_WEIGHT, GRAM_WEIGHT, COARSE_WEIGHT, SPREAD_WEIGHT = 0.5, 1.0, 1.0, 0.1
JITTER = 0.05  # noise on latents, so that the decoder is smooth
SMALLER_EVERY = 4  # steps: a latent of half the size has to decode to the picture of half the size
JUDGE_EVERY, JUDGED, SHOWN = 500, 16, 7
RESULTS, RESULT_FILES = "results", 20  # latents that the denoiser made
ESTIMATE_STARTS, ESTIMATE_REACH, LAST_TIMESTEP = (400, 750), 0.7, 30  # where the denoiser is asked for them


def perceptual_networks(device: torch.device):
    """AlexNet and the LPIPS heads."""
    from inst_core import metrics

    return metrics.load_networks(read_tensors(WEIGHTS)[0], device)


def distances(eyes, made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(LPIPS, Gram distance), means over (B, 3, H, W) in [0, 1]; ``eyes``: ``perceptual_networks``."""
    from inst_core.metrics.gram import gram_distance
    from inst_core.metrics.lpips import lpips

    with torch.no_grad():
        aim = eyes.alexnet(wanted)
    seen = eyes.alexnet(made)
    return lpips(seen, aim, eyes.heads).mean(), gram_distance(seen, aim).mean()


def coarse_difference(made: Tensor, wanted: Tensor) -> Tensor:
    """Of the mean colours of 8 x 8 pixels."""
    return (F.avg_pool2d(made, LATENT_STEP) - F.avg_pool2d(wanted, LATENT_STEP)).abs().mean()


def random_crops(chosen: Sequence[Tensor], side: int, generator: torch.Generator) -> Tensor:
    """(B, 3, side, side) in [0, 1] of bytes (3, H, W), every other one mirrored on average."""
    made = crops(chosen, random_corners(chosen, side, generator), side).float() / 255
    mirrored = torch.rand(len(made), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, made.flip(3), made)


def not_for_muon(name: str, weight: nn.Parameter) -> bool:
    """Kernels that read or write pictures and latents."""
    return min(weight.shape[:2]) <= 4


# ---- both halves ----

def train(options: argparse.Namespace) -> None:
    """The stage: begins anew or goes on."""
    folder, device = options.folder, options.device
    networks.host(device.type == "cpu")
    photographs, files = pictures.read(folder), picture_files(folder)
    eyes, model = perceptual_networks(device), networks.build_autoencoder().to(device)
    run = Training("autoencoder", folder / "vae.training.pt", model, (RATE, RATE), not_for_muon)
    held_out = torch.cat([photographs.held_out[:JUDGED // 2, :, :256, :256],
                          read_tensors(picture_files(folder, held_out=True)[0])[0]["target"][:JUDGED // 2]])

    def keep() -> None:
        save_tensors(folder / AUTOENCODER, run.averaged.state_dict(),
                     {"step": f"encoder {run.step}, decoder {run.step}"})

    progress = Progress("autoencoder")
    for step in run.going(options.minutes, keep, options.finish):
        chosen = mixed(photographs.training, files, BATCH, run.generator)
        wanted = random_crops(chosen, CROP, run.generator).to(device, memory_format=torch.channels_last)
        latent = model["encoder"](wanted)
        seen = latent + JITTER * torch.randn(latent.shape, generator=run.generator).to(device)
        if step % SMALLER_EVERY == 0:
            seen, wanted = (F.interpolate(x, scale_factor=0.5, mode="area") for x in (seen, wanted))
        made = model["decoder"](seen)
        difference, (lpips, _) = (made - wanted).abs().mean(), distances(eyes, made, wanted)
        centre = latent.mean((0, 2, 3)).square().mean() + (latent.std((0, 2, 3)) - 1).square().mean()
        run.learn(difference + LPIPS_WEIGHT * lpips + COARSE_WEIGHT * coarse_difference(made, wanted)
                  + SPREAD_WEIGHT * centre)
        progress.note(run.step, L1=difference.item(), LPIPS=lpips.item())
        if run.step % JUDGE_EVERY == 0:
            judge(folder / "autoencoder.png", run.averaged, held_out.to(device), eyes)
    judge(folder / "autoencoder.png", run.averaged, held_out.to(device), eyes)


def mixed(photographs: Tensor, files: Sequence[Path], many: int, generator: torch.Generator) -> list[Tensor]:
    """Pictures as bytes: half of the photographs, half of the teacher's."""
    which = torch.randint(len(photographs), (many - many // 2,), generator=generator).tolist()
    file = files[torch.randint(len(files), (), generator=generator)]
    targets = read_tensors(file)[0]["target"]
    painted = torch.randint(len(targets), (many // 2,), generator=generator).tolist()
    return [*(photographs[i] for i in which), *(targets[i] for i in painted)]


@torch.no_grad()
def judge(path: Path, model: nn.ModuleDict, held_out: Tensor, eyes) -> None:
    """Says how well held-out pictures (bytes; photographs, then the teacher's) come back, and shows some."""
    wanted = held_out.float() / 255
    latent = encoded(model, held_out)
    made = torch.cat([model["decoder"](z) for z in latent.split(4)]).clamp(0, 1)
    psnr = -10 * (made - wanted).square().mean((1, 2, 3)).log10()
    photographs, painted = psnr.split([len(psnr) // 2, len(psnr) - len(psnr) // 2])
    say("autoencoder", f"held out: photographs {photographs.mean():.2f} dB, the teacher's {painted.mean():.2f} dB, "
        f"LPIPS {distances(eyes, made, wanted)[0]:.3f}, spread of latents {latent.std():.2f}; to look at: {path}")
    shown = torch.linspace(0, len(wanted) - 1, SHOWN).long()
    save_sheet(path, [wanted[shown], made[shown]])


# ---- the decoder alone ----

def estimate(unet: nn.Module, pairs: Pairs, styled: Tensor, generator: torch.Generator, bfloat16: bool) -> Tensor:
    """What the denoiser takes for the finished pictures, (B, 4, h, w), asked once at a random level of img2img's own
    trajectory: it blurs and errs as sampling does, for a twentieth of the cost."""
    device, photo, target = next(unet.parameters()).device, pairs.photo.float(), pairs.target.float()
    u, v = torch.rand(2, len(photo), generator=generator)
    least, most = ESTIMATE_STARTS
    start = (least + (most - least) * u).long()
    timestep = (LAST_TIMESTEP + ESTIMATE_REACH * (start - LAST_TIMESTEP) * v**1.5).long()  # mostly near the end
    sigmas = noise_levels()
    noise = torch.randn(photo.shape, generator=generator) + (photo - target) / sigmas[start].view(-1, 1, 1, 1)
    sigma = sigmas[timestep].view(-1, 1, 1, 1).to(device)
    x = target.to(device) + sigma * noise.to(device)
    return x - sigma * predicted_noise(unet, x, timestep.to(device), styled.to(device), bfloat16)


@torch.no_grad()
def make_results(options: argparse.Namespace, files: Sequence[Path], name: str) -> list[Path]:
    """What the denoiser makes of the photographs of some files, in the styles that the teacher was told.

    Args:
        name: of the encoder's latents; results are kept for this encoder and this state of the denoiser.
    """
    encode(options)
    latents = options.folder / LATENTS / name
    reader, (unet, step) = load_reader(options.folder, read_pairs(options.folder)[0]), load_unet(options.folder)
    folder, unet, made = options.folder / RESULTS / f"{name}-{step}", unet.to(options.device).eval(), []
    for i, path in enumerate(tqdm(files, desc="results for the decoder", unit="file")):
        target = folder / path.name
        made.append(target)
        if target.exists():
            continue
        pairs = Pairs(**read_tensors(latents / path.name)[0])
        generator = torch.Generator().manual_seed(i)
        result = torch.cat([estimate(unet, part, reader.told(part.style), generator, options.bfloat16)
                            for part in (pairs[at] for at in torch.arange(len(pairs)).split(4))])
        save_tensors(target, {"result": result.half()})
    return made


def aligned_crops(latents: Tensor, wanted: Tensor, many: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents (many, 4, ...) and the pictures in [0, 1] of the same places, CROP pixels wide."""
    side, chosen = CROP // LATENT_STEP, torch.randint(len(latents), (many,), generator=generator)
    latents, wanted = latents[chosen].float(), wanted[chosen]
    corners = random_corners(latents, side, generator)
    in_pixels = [(LATENT_STEP * top, LATENT_STEP * left) for top, left in corners]
    return crops(latents, corners, side), crops(wanted, in_pixels, CROP).float() / 255


def decoder_samples(files: Sequence[Path], results: Sequence[Path], latents: Path, many: int,
                    generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(latents, pictures) twice: what the encoder gave of the teacher's pictures, and what the denoiser gave."""
    which = int(torch.randint(len(files), (), generator=generator))
    painted, given = files[which], files[which % len(results)]
    for file, path, name in ((painted, latents / painted.name, "target"),
                             (given, results[which % len(results)], "result")):
        yield aligned_crops(read_tensors(path)[0][name], read_tensors(file)[0]["target"], many, generator)


def train_decoder(options: argparse.Namespace) -> None:
    """The stage: latents of the encoder have to decode exactly; the denoiser's, whose details lie elsewhere than the
    teacher's, have to look alike (LPIPS, Gram) and have its colours (L1 of 8 x 8 means)."""
    folder, device = options.folder, options.device
    networks.host(device.type == "cpu")
    files, model = picture_files(folder), load_autoencoder(folder)
    name, eyes = digest_of(model["encoder"]), perceptual_networks(device)
    results = make_results(options, files[:RESULT_FILES], name)
    decoder = model["decoder"].to(device).requires_grad_(True)
    run = Training("decoder", folder / f"decoder-{name}.training.pt", decoder, (RATE / 4, RATE / 4), not_for_muon)
    encoder, told = read_tensors(folder / AUTOENCODER)
    encoder = {k: v for k, v in encoder.items() if k.startswith("encoder.")}
    before = told.get("step", "").partition(",")[0]

    def keep() -> None:
        weights = encoder | {f"decoder.{k}": v for k, v in run.averaged.state_dict().items()}
        save_tensors(folder / AUTOENCODER, weights, {"step": f"{before}, decoder alone {run.step}"})

    progress = Progress("decoder")
    for _ in run.going(options.minutes, keep, options.finish):
        exact, alike = decoder_samples(files, results, folder / LATENTS / name, BATCH // 2, run.generator)
        (latent, wanted), (result, style) = (tuple(x.to(device) for x in pair) for pair in (exact, alike))
        made = decoder(torch.cat([latent, result]).contiguous(memory_format=torch.channels_last))
        same, free = made.split(len(latent))
        difference, (lpips, _) = (same - wanted).abs().mean(), distances(eyes, same, wanted)
        free_lpips, gram = distances(eyes, free, style)
        run.learn(difference + LPIPS_WEIGHT * (lpips + free_lpips) + GRAM_WEIGHT * gram
                  + COARSE_WEIGHT * (coarse_difference(same, wanted) + coarse_difference(free, style)))
        progress.note(run.step, **{"L1": difference.item(), "LPIPS": lpips.item(), "LPIPS of results":
                                   free_lpips.item(), "Gram of results": gram.item()})
    show_results(folder / "decoder.png", run.averaged, results[0], files[0])
    say("decoder", f"step {run.step}; to look at: {folder / 'decoder.png'}")


@torch.no_grad()
def show_results(path: Path, decoder: nn.Module, results: Path, pictures_file: Path) -> None:
    """Rows: the teacher's pictures, and what the whole method gives."""
    wanted = read_tensors(pictures_file)[0]["target"][:SHOWN]
    result = read_tensors(results)[0]["result"][:SHOWN].float().to(next(decoder.parameters()).device)
    save_sheet(path, [wanted, decoder(result)])
