"""The loop: ``accelerate launch`` runs one of it on each device.

Processes share nothing but gradients.  What a step sees depends on its number alone (``cache.Order``), so one process,
two, and a process that was killed and went on, all see the same.
"""
import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from inst_core import guessing
from inst_core.content import span

from . import engines
from .cache import Cached, Order

LOADER, STEP, LOG = "loader.pt", "step.json", "log.jsonl"
WARM_UP = 20


def crops(batch: Mapping, side: int) -> tuple[Tensor, Tensor]:
    """(latents, noise) of ``side`` places, 0 = whole; where they are cut lies in the sample."""
    latent, noise = batch["latent"], batch["noise"]
    if not side or side >= min(latent.shape[-2:]):
        return latent, noise
    cut = [(slice(None), slice(y, y + side), slice(x, x + side)) for y, x in
           (((torch.tensor(latent.shape[-2:]) - side + 1) * place.cpu()).long().tolist() for place in batch["place"])]
    return torch.stack([z[c] for z, c in zip(latent, cut, strict=True)]), torch.stack(
        [n[c] for n, c in zip(noise, cut, strict=True)])


def between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
    """(B,) mean square distance of pseudo-words, in the length of the starting words; all text encoders alike."""
    parts = [((a[k] - b[k]).square().sum(-1) / start[k].norm(dim=-1).square()).mean(1) for k in a]
    return torch.stack(parts).mean(0)


class Losses:
    """What one step minimises; ``weights`` of the options: denoise, bank, leakage, length."""

    def __init__(self, options: argparse.Namespace, engine: engines.Engine):
        self.options, self.engine, self._words = options, engine, {}

    def start(self, context: str) -> dict[str, Tensor]:
        """Starting words, remembered."""
        if context not in self._words:
            self._words[context] = self.engine.words(context or self.options.start)
        return self._words[context]

    def starts(self, batch: Mapping, device: torch.device) -> dict[str, Tensor]:
        """{key: (B, 1, width)}: of the pictures' contexts, for a share of the samples, else the usual word."""
        use = [c if self.options.context and n % 100 < 100 * self.options.context else ""
               for c, n in zip(batch["context"], batch["number"].tolist(), strict=True)]
        return {k: torch.stack([self.start(c)[k] for c in use]).to(device) for k in self.engine.widths}

    def __call__(self, model, batch: Mapping) -> dict[str, Tensor]:
        """{name: mean over the batch}, "loss" among them."""
        weights, start = self.options, self.starts(batch, batch["seen"].device)
        many = len(batch["seen"])
        both = model(torch.cat([batch["seen"], batch["own"]]), {k: torch.cat([v, v]) for k, v in start.items()})
        told, own = ({k: v[part] for k, v in both.items()} for part in (slice(many), slice(many, None)))
        found = {"length": between(told, {k: v.expand_as(told[k]) for k, v in start.items()}, start).mean(),
                 "leakage": between(told, own, start).mean()}
        if batch["words"].shape[-1]:
            bank = {k: batch["words"].view(many, -1, told[k].shape[-1]).expand_as(told[k]) for k in told}
            found["bank"] = (batch["known"] * (between(told, bank, start) + between(own, bank, start)) / 2).mean()
        if weights.denoise:
            latent, noise = crops(batch, weights.crop)
            found["denoise"] = self.engine.losses(latent, noise, batch["time"], told, batch["caption"]).mean()
        found["loss"] = sum(getattr(weights, name) * value for name, value in found.items())
        return found


def collate(items: list[dict]) -> dict:
    held = {k: [item[k] for item in items] for k in items[0]}
    return {k: torch.stack(v) if torch.is_tensor(v[0]) else torch.tensor(v) if not isinstance(v[0], str) else v
            for k, v in held.items()}


def newest(folder: Path) -> Path | None:
    found = sorted(folder.glob("step-*[0-9]"), key=lambda p: int(p.name.split("-")[1]))
    return found[-1] if found else None


def keep(accelerator: Accelerator, loader: StatefulDataLoader, folder: Path, step: int) -> None:
    """A checkpoint that is whole or not there; the one before is kept until then."""
    target, partial = folder / f"step-{step:06}", folder / "partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    torch.save(loader.state_dict(), partial / f"{accelerator.process_index}-{LOADER}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / STEP).write_text(json.dumps({"step": step, "processes": accelerator.num_processes}))
        partial.replace(target)
        for old in sorted(folder.glob("step-*[0-9]"))[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resumed(accelerator: Accelerator, loader: StatefulDataLoader, folder: Path) -> int:
    """Steps that are done already.

    Raises:
        ValueError: the run began with another number of processes.
    """
    if (checkpoint := newest(folder)) is None:
        return 0
    about = json.loads((checkpoint / STEP).read_text())
    if about["processes"] != accelerator.num_processes:
        raise ValueError(f"{folder} was trained by {about['processes']} processes and can only go on with as many, now "
                         f"{accelerator.num_processes}. Launch as many, or begin in another --run.")
    accelerator.load_state(str(checkpoint))
    loader.load_state_dict(torch.load(checkpoint / f"{accelerator.process_index}-{LOADER}", weights_only=False))
    log = folder / LOG
    if accelerator.is_main_process and log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= about["step"]]
        log.write_text("".join(f"{line}\n" for line in lines))
    return about["step"]


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: up at first, down in a straight line to zero."""
    return min(1.0, (step + 1) / WARM_UP) * max(0.0, 1 - step / steps)


def groups(guesser: guessing.Guesser, rate: float) -> list[dict]:
    """Parameters for the optimizer.  A layer's rate is in inverse proportion to its inputs, so that one step changes
    what every layer says about as much (Yang et al. 2021, "Tensor Programs V", table 3)."""
    learned = [p for p in guesser.parameters() if p.requires_grad]
    return [{"params": [p], "lr": rate * (1 if p.ndim < 2 else min(1.0, guesser.about.rank / p.shape[1]))}
            for p in learned]


def fresh(options: argparse.Namespace, engine: engines.Engine, cached: Cached) -> guessing.Guesser:
    """The encoder that training begins from: --begin's, or a new one with the cache's mean and deviation."""
    if options.begin:
        guesser = guessing.load(options.begin)
        return guesser.train().requires_grad_(True)
    about = guessing.About(options.features, engine.widths, options.tokens, options.hidden, options.rank, options.side,
                           options.start, engine.family, engine.base_model)
    guesser = guessing.Guesser(about, engine.words(options.start))
    every = max(1, len(cached) // 2000)
    guesser.standardize(torch.cat([cached.features(i) for i in range(0, len(cached), every)]))
    if options.ridge and (told := cached.told()):
        features, words = (torch.cat(column) for column in zip(*told, strict=True))
        guesser.solve(features, {k: words for k in engine.widths}, options.ridge)
    return guesser


def shared_share(options: argparse.Namespace, processes: int) -> int:
    """Samples that a process takes at once.

    Raises:
        ValueError: the batch does not divide.
    """
    each, rest = divmod(options.batch, processes * options.accumulate)
    if rest or not each:
        raise ValueError(f"--batch is {options.batch}, which {processes} processes with --accumulate "
                         f"{options.accumulate} cannot share evenly. Choose a multiple of "
                         f"{processes * options.accumulate}.")
    return each


def train(options: argparse.Namespace) -> None:
    folder = options.folder / options.run
    accelerator = Accelerator(gradient_accumulation_steps=options.accumulate, log_with="tensorboard",
                              project_dir=str(folder), cpu=options.cpu)
    each = shared_share(options, accelerator.num_processes)
    set_seed(options.seed)
    with engines.opened(options, accelerator.device) as engine:
        with accelerator.main_process_first():
            cached = Cached(options.folder, options.seed, options.same)
        guesser = fresh(options, engine, cached)
        guesser.start.requires_grad_(False)
        content = {k: span(torch.cat([engine.words(thing)[k] for thing in engines.THINGS]), len(engines.THINGS))
                   for k in engine.widths} if options.leakage else {}
        loader = StatefulDataLoader(cached, each, sampler=Order(len(cached), options.seed, accelerator.process_index,
                                                                accelerator.num_processes), collate_fn=collate)
        optimizer = torch.optim.AdamW(groups(guesser, options.rate), weight_decay=options.decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, options.steps))
        model, optimizer = accelerator.prepare(guesser, optimizer)
        accelerator.register_for_checkpointing(schedule)
        accelerator.init_trackers("encoder")
        folder.mkdir(parents=True, exist_ok=True)
        done = resumed(accelerator, loader, folder)
        losses, batches, began = Losses(options, engine), iter(loader), time.monotonic()
        for step in range(done + 1, options.steps + 1):
            seen = []
            for _ in range(options.accumulate):
                batch = moved(next(batches), accelerator.device)
                with accelerator.accumulate(model), engine.recording(), accelerator.autocast():
                    found = losses(model, batch)
                    accelerator.backward(found["loss"])
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), options.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                seen.append((found, batch["row"]))
            schedule.step()
            accelerator.unwrap_model(model).remove(content)
            note(accelerator, folder, step, seen, options, began)
            if step % options.keep_every == 0 or step == options.steps:
                keep(accelerator, loader, folder, step)
        if accelerator.is_main_process:
            export(accelerator.unwrap_model(model), options, cached)
        accelerator.wait_for_everyone()
        accelerator.end_training()


def moved(batch: Mapping, device: torch.device) -> dict:
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


def note(accelerator: Accelerator, folder: Path, step: int, seen: list, options: argparse.Namespace,
         began: float) -> None:
    """A line in the log: mean losses over all processes, and the rows that were seen, in the order of their numbers."""
    names = sorted(seen[0][0])
    own = torch.stack([torch.stack([found[name].detach().float() for name in names]) for found, _ in seen]).mean(0)
    mean = accelerator.reduce(own, "mean").tolist()
    rows = accelerator.gather(torch.stack([row for _, row in seen])[None])  # (processes, accumulated, each)
    if accelerator.is_main_process:
        line = {"step": step, **{n: round(v, 7) for n, v in zip(names, mean, strict=True)},
                "rows": rows.permute(1, 2, 0).flatten().tolist()}
        with (folder / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        accelerator.log(dict(zip(names, mean, strict=True)), step)
        if step % options.say_every == 0 or step == options.steps:
            told = ", ".join(f"{n} {v:.4f}" for n, v in zip(names, mean, strict=True))
            print(f"[train] step {step} of {options.steps}, {time.monotonic() - began:.0f} s: {told}", flush=True)


def export(guesser: guessing.Guesser, options: argparse.Namespace, cached: Cached) -> None:
    about = guessing.About(**{**vars(guesser.about), "trained_on": options.trained_on
                              or f"{len(cached)} pictures in {len(cached.groups)} styles, {options.steps} steps of "
                                 f"{options.batch}"})
    guesser.about = about
    guessing.save(guesser.cpu(), options.output or options.folder / f"{options.run}.safetensors")

