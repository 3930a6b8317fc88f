"""What a guess is worth: held-out losses on paintings, beside learning with 20 and 100 steps.

Everything runs in the pack's own learning loop on the host's text encoder and sampling; only the demo model's denoiser
stands there as narrow as it was trained, and its text layers, which add nothing, are left out: the same numbers
(``tests/host/test_demo_checkpoint.py``) in a fraction of the time.  Every number is kept, so the stage goes on after
any end.
"""
import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from demo_model import checkpoint, networks
from demo_model.files import write_whole
from torch import Tensor, nn

STEPS, FEW = 100, 20


def held_out(session, vectors: dict[str, Tensor], whole: Tensor) -> float:
    """The loss that Learn InST Style reports, of given pseudo-words."""
    from inst_core.bank import held_out_bank
    from inst_core.encoders import DirectEncoder
    from inst_core.learning import Room, held_out_loss

    encoder = DirectEncoder(vectors, len(next(iter(vectors.values()))))
    return held_out_loss(session, encoder, None, held_out_bank(whole), Room(4))


class Bench:
    """The demo checkpoint in the host, ready to be learned on."""

    def __init__(self, file: Path, comfyui: Path | None):
        networks.host(True, comfyui)
        import comfy.sd

        self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(file))[:3]
        with torch.inference_mode(False):
            self._narrow = networks.build_unet()
            self._narrow.load_state_dict(checkpoint.open_shipped().unet)
            self._narrow.requires_grad_(False)

    @torch.no_grad()
    def word(self) -> dict[str, Tensor]:
        """What learning starts from."""
        from inst_core import host

        return {k: v.expand(4, -1).clone() for k, v in host.word_vectors(self.clip, "painting").items()}

    @torch.no_grad()
    def painting(self, pixels: Tensor, recipe):
        """Of (1, H, W, 3)."""
        from inst_core import host

        return host.look_at(pixels, recipe, self.model, self.vae, None, pixels.shape[1]).clone()

    def run(self, work: Callable):
        """``work(session)`` with models that can be differentiated."""
        from inst_core import host

        with host.training_mode(), host.training_session(self.model, self.clip, "*", 4) as session:
            session.denoiser.network = self._narrow
            session.text._clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers = nn.ModuleList()
            return work(session)


def measure(options: argparse.Namespace) -> None:
    """The stage: a table of held-out gains, in percent of what STEPS steps from the word gain."""
    from demo_model.quality import pictures_in

    from inst_core import guessing
    from inst_core.encoders import DirectEncoder
    from inst_core.learning import learn_style
    from inst_core.recipes import choose_recipe

    bench = Bench(options.checkpoint, options.comfyui)
    from .look import looking

    look, guesser = looking(options), guessing.load(options.encoder)
    kept = options.folder / f"measured-{options.encoder.stem}.json"
    shared = options.folder / "measured.json"
    known, word_known = (json.loads(p.read_text()) if p.exists() else {} for p in (kept, shared))

    def learned(session, painting, start: dict[str, Tensor], steps: int) -> list[tuple[int, float]]:
        recipe = choose_recipe("direct", 4, steps, rate=options.rate)
        encoder = DirectEncoder({k: v.clone() for k, v in start.items()}, 4)
        found = learn_style(session, encoder, painting, recipe)
        return [(check.samples // recipe.batch, check.loss) for check in found.checks]

    for picture in pictures_in(options.paintings, None):
        pixels = picture.pixels.permute(0, 2, 3, 1)
        painting = bench.painting(pixels, choose_recipe("direct", 4))
        word = bench.word()
        if picture.name not in word_known:
            began = time.monotonic()
            checks = bench.run(lambda session: learned(session, painting, word, STEPS))  # noqa: B023 (called at once)
            word_known[picture.name] = {"checks": checks, "seconds": time.monotonic() - began}
            write_whole(shared, lambda p: p.write_text(json.dumps(word_known)))
        if picture.name not in known:
            features = look(pixels)
            began = time.perf_counter()
            features = look(pixels)
            guess = guessing.guess(guesser, features)
            seconds = time.perf_counter() - began
            alone = bench.run(lambda session: held_out(session, guess, painting.whole))  # noqa: B023
            checks = bench.run(lambda session: learned(session, painting, guess, FEW))  # noqa: B023
            known[picture.name] = {"guess": alone, "seconds": seconds, "checks": checks}
            write_whole(kept, lambda p: p.write_text(json.dumps(known)))
        say(picture.name, word_known[picture.name], known[picture.name])
    table(word_known, known)


def best(checks: list, most: int = STEPS) -> float:
    return min(loss for steps, loss in checks if steps <= most)


def say(name: str, word: dict, guess: dict) -> None:
    print(f"[measure] {name}: word {word['checks'][0][1]:.4f}, guess {guess['guess']:.4f}, guess + {FEW} "
          f"{best(guess['checks']):.4f}, {STEPS} steps {best(word['checks']):.4f}; {guess['seconds']:.2f} s",
          flush=True)


def table(word: dict, guess: dict) -> None:
    print(f"| painting | loss of the word | guess | guess + {FEW} steps | {STEPS} steps from the word | guess, share "
          f"of the gain | guess + {FEW}, share | seconds |\n|---|---|---|---|---|---|---|---|")
    gains = []
    for name, g in guess.items():
        first, learned = word[name]["checks"][0][1], best(word[name]["checks"])
        gains.append([first - g["guess"], first - best(g["checks"]), first - learned])
        print(f"| {name} | {first:.4f} | {g['guess']:.4f} | {best(g['checks']):.4f} | {learned:.4f} | "
              f"{gains[-1][0] / gains[-1][2]:.0%} | {gains[-1][1] / gains[-1][2]:.0%} | {g['seconds']:.2f} |")
    total = torch.tensor(gains).sum(0)
    print(f"| all together | | | | | {total[0] / total[2]:.0%} | {total[1] / total[2]:.0%} | |")
