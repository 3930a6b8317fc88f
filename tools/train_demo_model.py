#!/usr/bin/env python3
"""Trains the demo checkpoint: an SD1-format model small enough to ship, which paints in a style that it is shown.

    python tools/train_demo_model.py data     packs pictures into one file (any machine with the environment; no GPU)
    python tools/train_demo_model.py vae      the autoencoder
    python tools/train_demo_model.py bank     photographs and their renderings, as latents with their styles
    python tools/train_demo_model.py unet     the denoiser
    python tools/train_demo_model.py export   the file that is shipped
    python tools/train_demo_model.py all      vae, bank, unet, export
    python tools/train_demo_model.py count    how much work each stage is

Every stage can be stopped at any moment (kill -9, too) and called again: it goes on where it last saved, on the numbers
it would have seen.  ``--minutes`` ends a call early; ``--finish`` makes the stage as long as this call's minutes.

How a small model can transfer style at all: it is trained for it.  A pair is a photograph and the same photograph
repainted (``painterly.py``; and by Gatys' optimisation); the style of the repainted one, measured by AlexNet, is
written into pseudo-words, and the text encoder makes the context of them.  Half of the time the denoiser sees the
repainted picture plus noise, as ever.  Half of the time the noise also holds what separates the photograph from the
repainted picture, exactly as much as is left of it when sampling starts at a noised photograph; predicting *that*
noise is style transfer.  ``docs/demo_model.md`` has the reasons, the sources and the numbers.
"""
import argparse
import contextlib
import csv
import json
import math
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))

import demo_model
import demo_pictures
import painterly
from demo_styles import (
    MIX,
    PHOTOGRAPH,
    WORDS,
    Prompts,
    StyleSpace,
    Text,
    autocast,
    host,
    style_features,
)
from small_models import UNET

from inst_core.methods import vgg
from inst_core.methods.gatys import gram
from inst_core.metrics.alexnet import AlexNet
from inst_core.metrics.alexnet import shapes as alexnet_shapes
from inst_core.metrics.lpips import load_heads, lpips

ROOT = Path(__file__).resolve().parents[1]
PICTURES = "pictures.safetensors"
LATENT_SCALE = 0.18215  # of SD1's latent format; the host multiplies what the VAE encodes by it
SIDE = 256
BANK_PART = 32  # batches
PACE = 20  # steps by which the speed is measured
PART_BYTES = 15 * 2**20  # a lent machine gives back files of at most 16 MiB

MIX_WEIGHT = 3.0  # mixes are few and the most like paintings: they are met so many times as often as renderings
TOKEN_NOISE = 0.8  # largest length of what is added to a style token, beside 1 for what all have in common
GAMMA = 5.0  # of min-SNR weighting
STARTS = (400, 999)  # noise levels at which a sampler may be given the photograph
MOST_REMEMBERED = 2.0  # how much of the photograph is left: plain noising leaves 1, stochastic inversion 2


# ---- a stage's state: what has to survive ----

class Run:
    """Model, its moving average, optimiser, random numbers, step and log of one stage, in one file."""

    def __init__(self, path: Path, model: nn.Module, options: argparse.Namespace, steps: int, rate: float,
                 average: float):
        self.path, self.model, self.options, self.steps = path, model, options, steps
        self.rate, self.decay = rate, average
        self.device = options.device
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        self.parameters = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01,
                                           fused=self.device.type == "cuda")
        self.step, self.log, self.recent = 0, [], []
        self.began = self.saved = self.shown = time.monotonic()
        if path.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.generator.set_state(state["generator"].cpu())
        self.step, self.log = state["step"], state["log"]
        say(f"{self.path.stem}: going on at step {self.step} of {self.steps}")

    def save(self) -> None:
        whole(self.path, lambda partial: torch.save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average,
             "generator": self.generator.get_state(), "step": self.step, "log": self.log}, partial))
        self.saved = time.monotonic()

    def going(self) -> Iterator[int]:
        """Steps until the stage is done or this call's time is up; what was done is saved, whatever happens."""
        limit = self.options.minutes and self.began + 60 * self.options.minutes
        looked = time.monotonic()
        while self.step < self.steps and not (limit and time.monotonic() > limit):
            yield self.step
            if time.monotonic() - self.saved > 60 * self.options.save_minutes:
                self.save()
            if self.options.finish and self.step % PACE == 0:  # steps become what fits into this call
                speed, looked = PACE / (time.monotonic() - looked), time.monotonic()
                self.steps = self.step + max(1, int((limit - looked) * speed))
        if self.options.finish:
            self.steps = self.step
        self.save()

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def learn(self, loss: Tensor) -> None:
        """One optimiser step. Constant rate with a short warm-up; the last fifth falls to zero, so that ``steps`` may
        be changed under way."""
        share = min(1.0, (self.step + 1) / min(200, 0.1 * self.steps), 5 * (1 - self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1
        self.recent.append(loss.detach())

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights."""
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            try:
                yield self.model
            finally:
                torch._foreach_copy_(self.parameters, own)

    def due(self, every: int) -> bool:
        """Also after the first step: what is wrong shows at once."""
        return self.step == 1 or self.step % every == 0 or self.done

    def note(self, batch: int, **values: float) -> None:
        """Prints and logs where we are; redraws the curves."""
        loss = torch.stack(self.recent).mean().item()
        if not math.isfinite(loss):
            raise SystemExit(f"The loss is {loss} at step {self.step}. Delete {self.path} and lower the rate.")
        seconds = time.monotonic() - self.shown
        speed = len(self.recent) * batch / seconds
        left = (self.steps - self.step) * seconds / len(self.recent) / 60
        self.log.append({"step": self.step, "loss": loss, **values})
        others = "".join(f"  {k} {v:.4f}" for k, v in values.items())
        say(f"{self.path.stem} {self.step}/{self.steps}  loss {loss:.4f}{others}  {speed:.0f} pictures/s, "
            f"{left:.1f} min left")
        self.recent, self.shown = [], time.monotonic()
        stem = self.path.with_suffix("")
        whole(stem.with_name(f"{stem.name}-curves.png"), lambda p: curves(self.log).save(p, "PNG"))
        whole(stem.with_name(f"{stem.name}-log.csv"), lambda p: write_csv(p, self.log))


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def whole(path: Path, write: Callable[[Path], object]) -> None:
    """The file is whole or as it was."""
    partial = path.with_name(f".{path.name}.part")
    write(partial)
    os.replace(partial, path)


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)


def curves(log: list[dict], width: int = 720, height: int = 400) -> Image.Image:
    """The logged values over steps, logarithmic."""
    canvas = Image.new("RGB", (width, height), "white")
    pen, inks = ImageDraw.Draw(canvas), ("black", "red", "blue", "green", "orange", "purple", "brown")
    names = list(dict.fromkeys(k for row in log for k in row if k != "step"))
    values = [math.log10(row[k]) for row in log for k in names if row.get(k, 0) > 0] or [0.0]
    low, high, last = min(values), max(values) + 1e-6, max(row["step"] for row in log)
    for name, ink in zip(names, inks, strict=False):
        points = [(40 + (width - 60) * row["step"] / last,
                   height - 25 - (height - 45) * (math.log10(row[name]) - low) / (high - low))
                  for row in log if row.get(name, 0) > 0]
        pen.line(points, fill=ink, width=2)
        latest = next(row[name] for row in reversed(log) if name in row)
        pen.text((width - 180, 12 + 13 * names.index(name)), f"{name} {latest:.4f}", fill=ink)
    for place, value in ((height - 30, low), (12, high)):
        pen.text((4, place), f"{10**value:.3f}", fill="grey")
    pen.text((width - 60, height - 14), str(last), fill="grey")
    return canvas


def sheet(columns: list[Tensor], path: Path) -> None:
    """Batches of pictures (n, 3, H, W) side by side, a row for each place in the batch."""
    rows = torch.cat([c.float().cpu().clamp(0, 1) for c in columns], 3)  # (n, 3, H, columns * W)
    array = (rows.permute(0, 2, 3, 1).flatten(0, 1) * 255).round().byte().numpy()
    whole(path, lambda partial: Image.fromarray(array).save(partial, "PNG"))


# ---- networks ----

def initialise(model: nn.Module, seed: int, last: tuple[str, ...]) -> None:
    """The host's modules come with whatever was in memory. ``last``: layers that end a branch start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            value = torch.full(parameter.shape, float(name.endswith("weight")))
        elif name.endswith(last):
            value = torch.zeros(parameter.shape)
        else:
            value = torch.randn(parameter.shape, generator=generator) / math.sqrt(math.prod(parameter.shape[1:]))
        parameter.data.copy_(value)


def build_vae(options: argparse.Namespace) -> nn.Module:
    host(options)
    from comfy.taesd.taesd import TAESD

    model = TAESD(latent_channels=4).to(options.device, memory_format=torch.channels_last)
    initialise(model, options.seed, ("conv.4.weight",))
    for module in (model.taesd_encoder, model.taesd_decoder):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.any():
                layer.weight.data *= math.sqrt(2)  # what ReLU takes away
    model.vae_scale.data.fill_(LATENT_SCALE)
    for scalar in (model.vae_scale, model.vae_shift):
        scalar.requires_grad_(False)
    # The Run's optimiser only sees what is trained.
    return nn.ModuleDict({"encoder": model.taesd_encoder, "decoder": model.taesd_decoder})


def build_unet(options: argparse.Namespace, **changes) -> nn.Module:
    host(options)
    import comfy.ops
    from comfy.ldm.modules.attention import FeedForward
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    model = UNetModel(**UNET | changes, out_channels=4, transformer_depth_output=[1, 1, 1, 1], dtype=torch.float32,
                      operations=comfy.ops.disable_weight_init)
    initialise(model, options.seed, ("out_layers.3.weight", "proj_out.weight", "out.2.weight"))
    model.to(options.device, memory_format=torch.channels_last)
    if options.compile:
        # Norms and activations fused; the rest is matrix products already. The functions, not the modules: one
        # compilation then serves all blocks of a shape, and compiling takes as long as many steps.
        for owner, name in ((ResBlock, "_forward"), (FeedForward, "forward")):
            setattr(owner, name, torch.compile(getattr(owner, name)))
    return model


# ---- stage vae ----

def crops(pictures: Tensor, count: int, side: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random squares, mirrored half of the time, of random pictures (n, 3, S, S) in bytes; (count, 3, side, side)."""
    chosen = torch.randint(len(pictures), (count,), generator=generator)
    return placed(pictures[chosen], side, generator, device)


def placed(pictures: Tensor, side: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """A random square of each picture."""
    room = pictures.shape[-1] - side + 1
    places = torch.randint(room, (2, len(pictures)), generator=generator).tolist()
    mirrored = torch.rand(len(pictures), generator=generator) < 0.5
    cut = torch.stack([p[:, y:y + side, x:x + side] for p, y, x in zip(pictures, *places, strict=True)])
    cut = torch.where(mirrored[:, None, None, None], cut.flip(3), cut)
    return cut.to(device).float() / 255


def train_vae(options: argparse.Namespace) -> None:
    """L1 and LPIPS, latents of mean 0 and deviation 1, and a latent that may be shrunk like a picture.

    The last two make the denoiser's life easy: it sees what the noise schedule was made for, and a latent whose coarse
    version decodes to the coarse picture has a simple spectrum (Kouzelis et al. 2025, EQ-VAE).
    """
    pack, device = demo_pictures.read(options.folder / PICTURES, options.pictures), options.device
    run = Run(options.folder / "vae.pt", build_vae(options), options, options.vae_steps, 6e-4, 0.999)
    alexnet, heads = AlexNet(pack.alexnet).to(device), [h.to(device) for h in load_heads(pack.alexnet)]
    encoder, decoder = run.model["encoder"], run.model["decoder"]
    chooser = torch.Generator()
    for step in run.going():
        chooser.manual_seed(options.seed * 2**32 + step)  # so that resuming needs no more than the step
        real = crops(pack.training, options.vae_batch, options.vae_side, chooser, device)
        half = len(real) // 2
        real[:half] = painterly.render(real[:half], step)[0]
        with autocast(device):
            latent = encoder(real.to(memory_format=torch.channels_last)).float()
            # A little noise: what the denoiser leaves must not show.
            shaken = latent + 0.05 * torch.randn(latent.shape, generator=run.generator, device=device)
            coarse = step % 4 == 0
            wanted = F.interpolate(real, scale_factor=0.5, mode="area") if coarse else real
            made = decoder(F.interpolate(shaken, scale_factor=0.5, mode="area") if coarse else shaken).float()
            perceived = lpips(alexnet(made), alexnet(wanted), heads).mean()
        differ = (made - wanted).abs().mean()
        unlike = latent.mean((0, 2, 3)).square().mean() + (latent.std((0, 2, 3)) - 1).square().mean()
        run.learn(differ + 0.5 * perceived + 0.1 * unlike)
        if run.due(options.log_every):
            values = {}
            if run.due(10 * options.log_every):
                with run.averaged():
                    values = judge_vae(run, pack, options)
            run.note(options.vae_batch, l1=differ.item(), lpips=perceived.item(), **values)


@torch.no_grad()
def judge_vae(run: Run, pack: demo_pictures.Pack, options: argparse.Namespace) -> dict[str, float]:
    """PSNR of held-out photographs and renderings, and the spread of their latents; draws a sheet."""
    real = held_out_photographs(pack, options)[:8]
    real = torch.cat([real[:4], painterly.render(real[4:], 1)[0]])
    latent = run.model["encoder"](real)
    made = run.model["decoder"](latent).clamp(0, 1)
    sheet([real, made], options.folder / "vae-sheet.png")
    return {"psnr": (-10 * (made - real).square().mean((1, 2, 3)).log10()).mean().item(), "spread": latent.std().item()}


def held_out_photographs(pack: demo_pictures.Pack, options: argparse.Namespace) -> Tensor:
    off = (pack.held_out.shape[-1] - SIDE) // 2
    return pack.held_out[:, :, off:off + SIDE, off:off + SIDE].to(options.device).float() / 255


def trained_vae(options: argparse.Namespace) -> nn.Module:
    """With its averaged weights, frozen."""
    model, path = build_vae(options), options.folder / "vae.pt"
    if not path.exists():
        raise SystemExit(f"There is no {path}. Run the stage vae first.")
    average = torch.load(path, map_location=options.device, weights_only=True)["average"]
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), average)
    return model.requires_grad_(False)


# ---- stage bank ----

@dataclass
class Bank:
    """Training pairs as latents near unit scale.

    Attributes:
        photograph, target: (n, 4, 32, 32) float16; equal where the picture is a photograph as it is.
        features: style features of the target, see ``style_features``; float16.
        word: (n,) index into WORDS.
    """

    photograph: Tensor
    target: Tensor
    features: list[Tensor]
    word: Tensor

    def __len__(self) -> int:
        return len(self.word)

    @classmethod
    def joined(cls, banks: list["Bank"]) -> "Bank":
        kinds = zip(*(b.features for b in banks), strict=True)
        return cls(*(torch.cat([getattr(b, f.name) for b in banks]) if f.name != "features"
                     else [torch.cat(kind) for kind in kinds] for f in fields(cls)))

    def to(self, device: torch.device) -> "Bank":
        return Bank(self.photograph.to(device), self.target.to(device), [x.to(device) for x in self.features],
                    self.word.to(device))


@torch.no_grad()
def banked(photographs: Tensor, targets: Tensor, word: str, vae: nn.Module, alexnet: AlexNet) -> Bank:
    with autocast(photographs.device):
        before, after = (vae["encoder"](x).half().cpu() for x in (photographs, targets))
    features = [x.half().cpu() for x in style_features(targets, alexnet)]
    return Bank(before, after, features, torch.full((len(targets),), WORDS.index(word)))


def mixed(photographs: Tensor, styles: Tensor, network: vgg.VGG, steps: int, draw: painterly.Draw) -> Tensor:
    """Style transfer by optimisation (Gatys et al. 2016), in VGG-16: what no rule of ours would draw."""
    layers, content_layer = ("relu1_1", "relu2_1", "relu3_1", "relu4_1"), "relu3_1"
    weight = draw.uniform(0.15, 0.6)
    with torch.no_grad():
        grams = [gram(x) for x in network(network.normalise(styles), layers).values()]
        wanted = network(network.normalise(photographs), (content_layer,))[content_layer]
        # Start with the style's colours: means and deviations of the channels.
        means, spreads = ([x.mean((2, 3), keepdim=True) for x in (photographs, styles)],
                          [x.std((2, 3), keepdim=True) for x in (photographs, styles)])
        start = (photographs - means[0]) / (spreads[0] + 0.05) * spreads[1] + means[1]
    with torch.enable_grad():
        picture = start.clamp(0, 1).requires_grad_()
        optimizer = torch.optim.Adam([picture], lr=0.03)
        for _ in range(steps):
            with autocast(picture.device):
                found = network(network.normalise(picture), layers)
            apart = sum(((gram(found[k].float()) - g.float()).square().sum((1, 2)) / g.float().square().sum((1, 2)))
                        for k, g in zip(layers, grams, strict=True))
            lost = (found[content_layer].float() - wanted.float()).square().mean((1, 2, 3))
            loss = (apart + weight * lost / wanted.float().square().mean((1, 2, 3))).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                picture.clamp_(0, 1)
    return picture.detach()


def make_bank(options: argparse.Namespace) -> None:
    """Every photograph as it is, in many renderings, and a number of mixes; and a small held-out bank.

    A part is saved after every BANK_PART batches, so that a stopped stage goes on.
    """
    if (options.folder / "bank.pt").exists():
        return
    pack, device = demo_pictures.read(options.folder / PICTURES, options.pictures), options.device
    demo_model.check(demo_model.text_encoder(), pack.proof)  # this torch must draw what the user's draws
    vae, alexnet = trained_vae(options), AlexNet(pack.alexnet).to(device)
    network = vgg.VGG(vgg.TORCHVISION_16, pack.vgg).to(device, memory_format=torch.channels_last)
    size, began = options.bank_batch, time.monotonic()
    rounds = -(-len(pack.training) // size)
    jobs = [("photograph", i) for i in range(rounds)]
    jobs += [("rendering", i) for i in range(rounds * options.renderings)]
    jobs += [("mix", i) for i in range(-(-options.mixes // size))]

    def make(kind: str, number: int) -> Bank:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{options.seed} {kind} {number}".encode()))
        order = torch.randperm(len(pack.training), generator=torch.Generator().manual_seed(number // rounds))
        chosen = order[number % rounds * size:(number % rounds + 1) * size]
        photographs = placed(pack.training[chosen], SIDE, generator, device)
        if kind == "photograph":
            return banked(photographs, photographs, PHOTOGRAPH, vae, alexnet)
        if kind == "rendering":
            targets, word = painterly.render(photographs, number)
            return banked(photographs, targets, word, vae, alexnet)
        styles = crops(pack.training, len(photographs), SIDE, generator, device)
        if number % 4:  # three quarters are after renderings, the rest after pictures as they are
            styles = painterly.render(styles, 10**6 + number)[0]
        targets = mixed(photographs, styles, network, options.mix_steps, painterly.Draw(number))
        return banked(photographs, targets, MIX, vae, alexnet)

    folder = options.folder / "bank"
    folder.mkdir(exist_ok=True)
    parts = [jobs[i:i + BANK_PART] for i in range(0, len(jobs), BANK_PART)]
    for i, part in enumerate(parts):
        path = folder / f"{i}.pt"
        if not path.exists():
            bank = Bank.joined([make(*job) for job in part])
            whole(path, lambda partial, bank=bank: torch.save(vars(bank), partial))
            say(f"bank {i + 1}/{len(parts)}, {time.monotonic() - began:.0f} s")
    photographs = held_out_photographs(pack, options)
    judged = [painterly.render(p[None], 2 * 10**6 + i) for i, p in enumerate(photographs)]
    held_out = Bank.joined([banked(p[None], t, w, vae, alexnet) for p, (t, w) in zip(photographs, judged, strict=True)])
    training = Bank.joined([Bank(**torch.load(folder / f"{i}.pt", weights_only=True)) for i in range(len(parts))])
    whole(options.folder / "bank.pt", lambda partial: torch.save(
        {"training": vars(training), "held_out": vars(held_out)}, partial))
    shutil.rmtree(folder)
    say(f"bank: {len(training)} pairs, {len(held_out)} held out")


def read_bank(options: argparse.Namespace) -> tuple[Bank, Bank]:
    """(training, held out)"""
    path = options.folder / "bank.pt"
    if not path.exists():
        raise SystemExit(f"There is no {path}. Run the stage bank first.")
    state = torch.load(path, weights_only=True)
    return Bank(**state["training"]), Bank(**state["held_out"])


# ---- stage unet ----

def noise_levels(device: torch.device) -> Tensor:
    """sigma of SD1's 1000 times: scaled-linear betas; x = (z + sigma n) / sqrt(1 + sigma^2)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = (1 - betas).cumprod(0)
    return ((1 - kept) / kept).sqrt().float().to(device)


def remembering(noise: Tensor, photograph: Tensor, target: Tensor, sigma_start: Tensor, share: Tensor) -> Tensor:
    """Noise that remembers the photograph.

    Sampling that starts at ``photograph + sigma_s n`` and ends at ``target`` runs, for a perfect denoiser, along
    ``target + sigma n'`` with n' = n + (photograph - target) / sigma_s: one straight line, one noise for all levels.
    Stochastic inversion doubles the second term: it starts at the photograph plus the predicted n'.

    Args:
        share: (B,) how much of it, 0 = ordinary noise.
    """
    return noise + (share / sigma_start).view(-1, 1, 1, 1) * (photograph - target)


def denoised_error(unet: nn.Module, z: Tensor, noise: Tensor, time_index: Tensor, sigmas: Tensor,
                   context: Tensor) -> Tensor:
    """(B,) min-SNR weighted eps-prediction error (Hang et al. 2023)."""
    sigma = sigmas[time_index].view(-1, 1, 1, 1)
    x = (z + sigma * noise) / (1 + sigma.square()).sqrt()
    with autocast(z.device):
        predicted = unet(x.to(memory_format=torch.channels_last), time_index.float(), context=context).float()
    snr = sigma.flatten() ** -2
    return (predicted - noise).square().mean((1, 2, 3)) * snr.clamp(max=GAMMA) / snr


def train_unet(options: argparse.Namespace, unet: nn.Module | None = None) -> None:
    device = options.device
    training, held_out = (bank.to(device) for bank in read_bank(options))
    space = StyleSpace.of([x.float() for x in training.features]).to(device)
    parts = torch.cat([space.parts([x[i].float() for x in training.features]).half()
                       for i in torch.arange(len(training), device=device).split(512)])
    weights = torch.where(training.word == WORDS.index(MIX), MIX_WEIGHT, 1.0)
    training.features = []  # the parts are all that is needed of them
    run = Run(options.folder / "unet.pt", unet or build_unet(options), options, options.unet_steps, options.rate,
              0.999)
    text, prompts, sigmas, generator = Text(options), Prompts(options), noise_levels(device), run.generator

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    for _ in run.going():
        chosen = torch.multinomial(weights, options.unet_batch, replacement=True, generator=generator)
        target, photograph = training.target[chosen].float(), training.photograph[chosen].float()
        rows = prompts.drawn(training.word[chosen], generator)
        # Learning leaves the directions that measured styles fill; there the model must stay calm.
        astray = TOKEN_NOISE / math.sqrt(demo_model.WIDTH) * draw(len(chosen), 1, 1)
        style = parts[chosen].float()
        style = style + astray * torch.randn(style.shape, generator=generator, device=device)
        context = text(prompts.ids[rows], prompts.place[rows], prompts.count[rows],
                       space.tokens(style, prompts.count[rows]))
        share = (draw(len(chosen)) < 0.5) * MOST_REMEMBERED * draw(len(chosen))
        start = torch.where(share > 0, STARTS[0] + (STARTS[1] - STARTS[0]) * draw(len(chosen)), 999.0)
        time_index = (draw(len(chosen)) * (start + 1)).long().clamp(max=999)
        noise = torch.randn(target.shape, generator=generator, device=device)
        noise = remembering(noise, photograph, target, sigmas[start.long()], share)
        run.learn(denoised_error(run.model, target, noise, time_index, sigmas, context).mean())
        if run.due(options.log_every):
            values = {}
            if options.judged and run.due(10 * options.log_every):
                with run.averaged(), torch.compiler.set_stance("force_eager"):  # other sizes would compile again
                    values = judge_unet(run, held_out, space, text, prompts, sigmas, options)
            run.note(options.unet_batch, **values)


@torch.no_grad()
def judge_unet(run: Run, held_out: Bank, space: StyleSpace, text: Text, prompts: Prompts, sigmas: Tensor,
               options: argparse.Namespace) -> dict[str, float]:
    """Losses on fixed noise with the right style, another picture's style and none; draws a sheet.

    Where wrong and right are alike, the model does not listen.
    """
    device, count = options.device, min(len(held_out), options.judged)
    generator = torch.Generator().manual_seed(1)
    target, photograph = held_out.target[:count].float(), held_out.photograph[:count].float()
    noise = torch.randn(target.shape, generator=generator).to(device)
    start = torch.full((count,), 700, device=device)
    parts = space.parts([x[:count].float() for x in held_out.features])
    painting = remembering(noise, photograph, target, sigmas[start], torch.ones(count, device=device))
    time_index = (torch.arange(count, device=device) * 700 // count + 40).clamp(max=700)

    def context(style: Tensor, row: int) -> Tensor:
        rows = torch.full((count,), row, device=device)
        tokens = space.tokens(style, prompts.count[rows])
        return text(prompts.ids[rows], prompts.place[rows], prompts.count[rows], tokens)

    contexts = {"right": context(parts, prompts.star), "wrong": context(parts.roll(1, 0), prompts.star),
                "none": context(parts, prompts.empty)}
    found = {f"{name}": denoised_error(run.model, target, painting, time_index, sigmas, c).mean().item()
             for name, c in contexts.items()}
    found["plain"] = denoised_error(run.model, target, noise, time_index, sigmas, contexts["right"]).mean().item()
    vae = trained_vae(options)
    shown = min(count, 8)
    made = repaint(run.model, photograph[:shown].roll(1, 0), noise[:shown], contexts["right"][:shown],
                   contexts["none"][:shown], sigmas)
    pictures = [vae["decoder"](z) for z in (photograph[:shown].roll(1, 0), target[:shown], made)]
    sheet(pictures, options.folder / "unet-sheet.png")
    return found


@torch.no_grad()
def repaint(unet: nn.Module, photograph: Tensor, noise: Tensor, context: Tensor, none: Tensor, sigmas: Tensor,
            start: int = 700, steps: int = 20, cfg: float = 2.0) -> Tensor:
    """DDIM from a noised photograph (Meng et al. 2022), with classifier-free guidance; the latent."""
    times = torch.linspace(start, 0, steps + 1, device=photograph.device).round().long()
    x = photograph + sigmas[times[0]] * noise
    for now, after in zip(times[:-1], times[1:], strict=True):
        scaled = x / (1 + sigmas[now] ** 2).sqrt()
        with autocast(x.device):
            both = unet(torch.cat([scaled, scaled]), now.float().expand(2 * len(x)), context=torch.cat([context, none]))
        styled, plain = both.float().chunk(2)
        noise = plain + cfg * (styled - plain)
        x = x + (sigmas[after] - sigmas[now]) * noise
    return x - sigmas[0] * noise


# ---- stage export ----

def export(options: argparse.Namespace) -> None:
    """The averaged weights as the shipped file, in parts too where it has to travel in pieces; and the checkpoint."""
    host(options)
    weights, recipe = checkpoint_weights(options)
    shipped = options.folder / demo_model.SHIPPED.name
    demo_model.ship(shipped, weights, recipe)
    demo_model.join(shipped, options.folder / "inst-demo.safetensors")
    lost = demo_model.unpacked(demo_model.packed(weights))
    error = max(((lost[k].float() - v).norm() / v.norm()).item() for k, v in weights.items() if v.ndim > 1)
    say(f"export: {shipped} has {shipped.stat().st_size / 1e6:.2f} MB; int8 changed no tensor by more than "
        f"{100 * error:.1f} %")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        data = shipped.read_bytes()
        for i in range(0, -(-len(data) // PART_BYTES)):
            part = options.output / f"{shipped.name}.{i}"
            part.write_bytes(data[i * PART_BYTES:(i + 1) * PART_BYTES])


def checkpoint_weights(options: argparse.Namespace) -> tuple[dict[str, Tensor], dict]:
    """U-Net and VAE by their keys in an SD1-format file, float32, and how they came about."""
    weights, recipe = {}, {"seed": options.seed}
    for stage, build in (("vae", build_vae), ("unet", build_unet)):
        path = options.folder / f"{stage}.pt"
        if not path.exists():
            raise SystemExit(f"There is no {path}. Run the stage {stage} first.")
        state = torch.load(path, map_location="cpu", weights_only=True)
        recipe[stage] = {"steps": state["step"], "last": state["log"][-1] if state["log"] else {}}
        names = [name for name, _ in build(options).named_parameters()]
        prefix = demo_model.UNET if stage == "unet" else f"{demo_model.VAE}taesd_"
        weights |= {prefix + k: v.float().cpu().contiguous() for k, v in zip(names, state["average"], strict=True)}
    weights[f"{demo_model.VAE}vae_scale"] = torch.tensor(LATENT_SCALE)
    weights[f"{demo_model.VAE}vae_shift"] = torch.tensor(0.0)
    return weights, recipe


# ---- stage count ----

def count(options: argparse.Namespace) -> None:
    """Floating-point operations of every stage at these settings, by torch's counter on one picture."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    options.device = torch.device("cpu")

    def counted(run: Callable[[], Tensor], backward: bool) -> float:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward), sdpa_kernel(SDPBackend.MATH):
            result = run()
            if backward:
                result.sum().backward()
        return counter.get_total_flops()

    vae, unet, text, eyes = build_vae(options), build_unet(options), Text(options), AlexNet(
        {k: torch.zeros(s) for k, s in alexnet_shapes().items()})
    picture, latent, context = torch.rand(1, 3, SIDE, SIDE), torch.rand(1, 4, 32, 32), torch.rand(1, 77, 768)
    share = (options.vae_side / SIDE) ** 2
    kept = [f"features.{i}." for i in demo_pictures.VGG_KEPT]
    looked = vgg.VGG(vgg.TORCHVISION_16, {k: torch.zeros(s) for k, s in vgg.TORCHVISION_16.shapes().items()
                                          if k.startswith(tuple(kept))})
    each = {
        "vae": share * (counted(lambda: vae["decoder"](vae["encoder"](picture)), True)
                        + counted(lambda: eyes(picture)[4], False)
                        + counted(lambda: eyes(picture.requires_grad_())[4], True)),
        "bank, pair": 2 * counted(lambda: vae["encoder"](picture), False),
        "bank, mix step": counted(lambda: looked(picture.requires_grad_(), ("relu4_1",))["relu4_1"], True),
        "unet": counted(lambda: unet(latent, torch.zeros(1), context=context), True),
        "text": counted(lambda: text.transformer(embeds=context, num_tokens=[1])[0], False),
    }
    pairs = options.renderings + 1
    photographs = len(demo_pictures.read(options.folder / PICTURES).training)
    total = {"vae": each["vae"] * options.vae_steps * options.vae_batch,
             "bank": each["bank, pair"] * (photographs * pairs + options.mixes)
             + each["bank, mix step"] * options.mixes * options.mix_steps,
             "unet": (each["unet"] + each["text"]) * options.unet_steps * options.unet_batch}
    for name, value in each.items():
        say(f"{name}: {value / 1e9:.1f} GFLOP for one picture")
    for name, value in total.items():
        say(f"stage {name}: {value / 1e15:.1f} PFLOP, {value / 2e14 / 60:.1f} minutes at 200 TFLOP/s")


# ---- the command ----

def data(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    target = options.folder / PICTURES
    counts = demo_pictures.pack(target, options.weights, options.more)
    say(f"{target}: {target.stat().st_size / 2**20:.1f} MiB, pictures: {json.dumps(counts)}")


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "data": data, "vae": train_vae, "bank": make_bank, "unet": train_unet, "export": export, "count": count}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--folder", type=Path, default=ROOT / ".dev" / "demo_model", help="where everything is kept")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".dev" / "ComfyUI")
    parser.add_argument("--weights", type=Path, default=ROOT / ".dev" / "home" / "models" / "style_transfer",
                        help="folder with lpips-alex.safetensors and vgg16.safetensors, for the stage data")
    parser.add_argument("--more", type=Path, action="append", default=[], help="a further folder of pictures")
    parser.add_argument("--output", type=Path, help="sheets, curves and the shipped file in parts are copied here")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available()
                                                                            else "cpu"))
    parser.add_argument("--compile", action="store_true", help="torch.compile in the U-Net: slow to start, then faster")
    parser.add_argument("--minutes", type=float, default=0, help="time limit of each stage of this call, 0 = none")
    parser.add_argument("--finish", action="store_true", help="with --minutes: the stage ends with this call, however "
                        "many steps that is; the rate falls to zero towards its end")
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--log-every", type=int, default=50, help="steps; held-out pictures every ten times that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, help="only so many training pictures, for a try")
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--vae-side", type=int, default=128, help="px of a crop, at least 64")
    parser.add_argument("--renderings", type=int, default=10, help="of each photograph in the bank")
    parser.add_argument("--mixes", type=int, default=2048)
    parser.add_argument("--mix-steps", type=int, default=60)
    parser.add_argument("--bank-batch", type=int, default=16)
    parser.add_argument("--unet-steps", type=int, default=4000)
    parser.add_argument("--unet-batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--judged", type=int, default=48, help="held-out pairs looked at during the stage unet")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if options.finish and not options.minutes:
        sys.exit("--finish needs --minutes")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    stages = ("vae", "bank", "unet", "export") if options.stage == "all" else (options.stage,)
    for stage in stages:
        STAGES[stage](options)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            for path in options.folder.glob("*.png"):
                shutil.copy(path, options.output)


if __name__ == "__main__":
    main()
