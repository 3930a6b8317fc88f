"""What learning minimises: which samples it looks at, what they weigh, and when it is done.

The loss is the eps-prediction error of latent diffusion (Rombach et al. 2022, eq. 2; InST eq. 4), mean over all
elements, on the painting itself.  A noise level is named by its training time in [0, 1], 1 = pure noise; ``log_snr``
stands for the model's own log signal-to-noise ratio of such times.
"""
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
HELD_OUT_SEED = 0x1257
HELD_OUT_LEVELS = 8
MIN_SNR_GAMMA = 5.0
COSINE_OFFSET = 0.008

LogSNR = Callable[[Tensor], Tensor]


# ---- densities of the training time: (count,) places in [0, 1) -> times in [0, 1], ascending ----

def uniform(places: Tensor, log_snr: LogSNR) -> Tensor:
    """Every time equally often, as all latent diffusion models are trained."""
    return places


def cosine_log_snr(places: Tensor, log_snr: LogSNR) -> Tensor:
    """The log-SNR that the cosine schedule has at these places (Nichol & Dhariwal 2021, eq. 17), read as times of
    this model; what lies outside its range goes to its ends."""
    angle = (places + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2
    wanted = -2 * angle.tan().log()
    times = torch.linspace(0, 1, TRAIN_TIMESTEPS)
    falling = log_snr(times)
    return times[torch.searchsorted(-falling, -wanted).clamp(max=TRAIN_TIMESTEPS - 1)]


# ---- weights of the eps-prediction loss: (count,) times -> (count,) ----

def unweighted(times: Tensor, log_snr: LogSNR) -> Tensor:
    """Every sample counts the same (Ho et al. 2020, eq. 14)."""
    return torch.ones_like(times)


def min_snr(times: Tensor, log_snr: LogSNR) -> Tensor:
    """min(SNR, 5) / SNR: levels with little noise weigh less (Hang et al. 2023, section 3.4, eps-prediction)."""
    snr = log_snr(times).exp()
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


DENSITIES = {"uniform": uniform, "cosine_log_snr": cosine_log_snr}
WEIGHTS = {"unweighted": unweighted, "min_snr": min_snr}


@dataclass(frozen=True)
class Objective:
    """Which samples are learned from.

    Attributes:
        density: of the training time, one of ``DENSITIES``.
        weight: of the loss, one of ``WEIGHTS``.
        strongest: times above it are left out: a style used at strength 0.7 never meets more noise than that.
        bank: number of samples, drawn once and met again and again; 0 = fresh samples in every step.
        antithetic: the samples of a bank come in pairs with opposite noise.
    """

    density: str = "uniform"
    weight: str = "unweighted"
    strongest: float = 1.0
    bank: int = 64
    antithetic: bool = True

    def times(self, places: Tensor, log_snr: LogSNR) -> Tensor:
        """(count,) training times of the chosen density, capped at ``strongest``."""
        times = DENSITIES[self.density](torch.linspace(0, 1, TRAIN_TIMESTEPS), log_snr)
        share = float((times <= self.strongest).sum()) / TRAIN_TIMESTEPS
        return DENSITIES[self.density](places * share, log_snr).clamp(max=self.strongest)


RELEASED = Objective(bank=0, antithetic=False)


@dataclass(frozen=True)
class Batch:
    """Samples of the loss.

    Attributes:
        latent, noise: clean latents and their noise, (B, C, h, w).
        time: (B,) training times in [0, 1].
        weight: (B,) of the loss; None = 1.
        entries: names of the samples where they come from a bank: what is constant about one is computed once.
    """

    latent: Tensor
    noise: Tensor
    time: Tensor
    weight: Tensor | None = None
    entries: Sequence[int | str] | None = None

    def split(self, size: int) -> Iterator["Batch"]:
        """Parts of at most ``size`` samples."""
        for part in torch.arange(len(self.time)).split(size):
            yield self.take(part)

    def take(self, index: Tensor) -> "Batch":
        """The samples at ``index`` (n,)."""
        return Batch(self.latent[index], self.noise[index], self.time[index],
                     None if self.weight is None else self.weight[index],
                     None if self.entries is None else [self.entries[i] for i in index.tolist()])


def fresh_samples(views: Tensor, count: int, generator: torch.Generator) -> Iterator[Batch]:
    """For ever ``count`` random views with fresh noise, at times uniform over the 1000 discrete ones; the released
    recipe."""
    while True:
        chosen = torch.randint(len(views), (count,), generator=generator)
        noise = torch.randn((count, *views.shape[1:]), generator=generator)
        time = torch.randint(TRAIN_TIMESTEPS, (count,), generator=generator) / (TRAIN_TIMESTEPS - 1)
        yield Batch(views[chosen], noise, time)


def noise_bank(views: Tensor, count: int, objective: Objective, log_snr: LogSNR, generator: torch.Generator) -> Batch:
    """``count`` samples with stratified times (Kingma et al. 2021, appendix I.1), ordered by time.

    Antithetic ones come in pairs that share view and time and have opposite noise; ``count`` is even then.
    """
    pair = 2 if objective.antithetic else 1
    groups = count // pair
    places = (torch.arange(groups) + torch.rand(groups, generator=generator)) / groups
    noise = torch.randn((groups, *views.shape[1:]), generator=generator)
    order = torch.randperm(groups, generator=generator)
    if objective.antithetic:
        noise = torch.stack([noise, -noise], 1).flatten(0, 1)
    time = objective.times(places, log_snr).repeat_interleave(pair)
    latent = views[order % len(views)].repeat_interleave(pair, 0)
    return Batch(latent, noise, time, WEIGHTS[objective.weight](time, log_snr), range(len(time)))


def rounds(bank: Batch, count: int, pair: int, generator: torch.Generator) -> Iterator[Batch]:
    """For ever ``count`` samples of the bank, each batch spread over all levels, pairs kept together; about every
    sample once before any comes again."""
    strata = count // pair  # of neighbouring levels; a batch takes one group from each
    while True:
        # Row i: the groups of stratum i in random order; column j: what the j-th batch takes.
        rows = [part[torch.randperm(len(part), generator=generator)]
                for part in torch.arange(len(bank.time) // pair).tensor_split(strata)]
        for j in range(max(len(row) for row in rows)):
            taken = torch.stack([row[j % len(row)] for row in rows])
            yield bank.take((taken[:, None] * pair + torch.arange(pair)).flatten())


def samples(views: Tensor, count: int, objective: Objective, log_snr: LogSNR,
            generator: torch.Generator) -> Iterator[Batch]:
    """For ever batches of ``count`` samples; an odd ``count`` has no pairs."""
    if not objective.bank:
        return fresh_samples(views, count, generator)
    objective = replace(objective, antithetic=objective.antithetic and count % 2 == 0)
    pair = 2 if objective.antithetic else 1
    size = max(objective.bank, count)
    bank = noise_bank(views, size - size % pair, objective, log_snr, generator)
    return rounds(bank, count, pair, generator)


def held_out_bank(views: Tensor) -> Batch:
    """Samples that are never trained on: the same noise and evenly spaced levels in every run.

    Only on a fixed bank is the loss comparable between steps (Voronov et al. 2023, "Is This Loss Informative?").
    """
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    latent = views[torch.arange(HELD_OUT_LEVELS) % len(views)]
    noise = torch.randn(latent.shape, generator=generator)
    time = (torch.arange(HELD_OUT_LEVELS) + 0.5) / HELD_OUT_LEVELS
    return Batch(latent, noise, time, entries=[f"held out {i}" for i in range(HELD_OUT_LEVELS)])


def converged(held_out: Sequence[float], patience: int = 3, tolerance: float = 0.05) -> bool:
    """Whether the last ``patience`` held-out losses brought less than ``tolerance`` of all that was gained.

    The stop rule of Voronov et al. 2023 (DVAR) in its simplest form: on a fixed bank a flat curve means convergence.
    """
    if len(held_out) <= patience:
        return False
    before, now = min(held_out[:-patience]), min(held_out)
    return before - now <= tolerance * (held_out[0] - now)


def noise_error(denoiser, batch: Batch, conditioning, device: torch.device) -> tuple[Tensor, Tensor]:
    """(squared error of the noise prediction, denoised prediction), both (B, C, h, w) float32."""
    latent, noise = batch.latent.to(device), batch.noise.to(device)
    sigma = denoiser.level(batch.time).to(device)
    x = denoiser.noised(latent, noise, sigma)
    denoised = denoiser.denoised(x, sigma, conditioning, batch.entries)
    return (denoiser.predicted_noise(x, sigma, denoised) - noise).square(), denoised


def weighted(error: Tensor, weight: Tensor | None) -> Tensor:
    """(B, C, ...) errors times (B,) weights."""
    return error if weight is None else error * weight.to(error).view(-1, *[1] * (error.ndim - 1))
