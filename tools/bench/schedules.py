"""Whether a cosine schedule is better, on the demo checkpoint, which was trained on Stable Diffusion's: at sampling,
where it chooses the levels that are visited, and at learning, where it chooses those that are drawn.

At learning the samples lie at equal steps of the cosine clock (``inst_core.schedules.cosine_clock``) instead of equal
steps of the training time.  Both are judged by the same held-out loss, and by what the style then paints.
"""
import argparse
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from demo_model.quality import ALONE, WITHOUT_GUESS

from bench import demo

SCHEDULERS = "ddim_uniform", "normal", "karras", "InST cosine"
HEAD = ("where", "schedule", "held-out loss, kept", "Gram to style", "self-similarity", "LPIPS to content",
        "palette, Lab")
COLUMNS = (("gram", 3), ("self_similarity", 4), ("lpips", 3), ("palette_lab", 2))


def cosine_bank(model_sampling, draw, views, recipe, generator, *more):
    """``draw`` a bank as learning does, at times that are equally far apart on the cosine clock."""
    bank = draw(views, recipe, generator, *more)
    low, high = (torch.tensor(float(s)).atan() for s in (model_sampling.sigma_min, model_sampling.sigma_max))
    sigma = (low + bank.time / recipe.strongest * (high - low)).tan()
    return replace(bank, time=model_sampling.timestep(sigma).float() / (len(model_sampling.sigmas) - 1))


def learn(bench, painting, args: argparse.Namespace):
    """(style, held-out loss kept), from the word *painting*."""
    from inst_pack.inst_core import host
    from inst_pack.inst_core.recipes import choose_recipe
    from inst_pack.inst_core.style import Style

    studio, base = bench.studio, ALONE
    recipe = choose_recipe(base.encoder, base.tokens, args.learning_steps, base.batch, base.learning_rate)
    with torch.inference_mode():
        encoder = host.learning.make_encoder(studio.clip, recipe)
        looked = host.learning.look_at(painting.pixels.permute(0, 2, 3, 1), recipe, studio.model, studio.vae, None,
                                       args.pixels)
        learned = host.learning.learn(studio.model, studio.clip, encoder, looked, recipe, "*", "all", lambda step: None)
    return Style(learned.vectors, family="SD15"), learned.kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    demo.add_arguments(parser, styles=2)
    parser.add_argument("--steps", type=int, default=8, help="sampling steps (8)")
    parser.add_argument("--learning-steps", type=int, default=ALONE.learning_steps)


def main(args: argparse.Namespace) -> int:
    bench = demo.Bench(args)
    from inst_pack.inst_core import host, learning
    from inst_pack.inst_core.metrics.tables import markdown
    from inst_pack.nodes.style import InSTStyleConditioning

    model, rows = bench.studio.model, []
    sampling = model.get_model_object("model_sampling")

    def row(where: str, schedule: str, loss: str, positives: dict, **more) -> None:
        found = bench.measure(lambda content, style: bench.repainted(content, style, positives[style.digest],
                                                                     steps=args.steps, **more))
        rows.append([where, schedule, loss, *(f"{found[key]:.{digits}f}" for key, digits in COLUMNS)])
        demo.say(rows[-1])

    with torch.inference_mode():
        learned = {s.digest: bench.conditioning(s, **WITHOUT_GUESS) for s in bench.styles}
    strength = demo.BASE.strength
    for scheduler in SCHEDULERS:
        sigmas = (host.sampling.cosine_sigmas(model, args.steps, strength) if scheduler == SCHEDULERS[-1]
                  else host.sampling.sampling_sigmas(model, scheduler, args.steps, strength))
        row("sampling", scheduler, "", learned, sigmas=sigmas)
    for schedule, bank in (("uniform in time", learning.draw_bank),
                           ("cosine clock", partial(cosine_bank, sampling, learning.draw_bank))):
        positives, losses = {}, []
        for painting in bench.styles:
            with mock.patch.object(learning, "draw_bank", bank):
                style, loss = learn(bench, painting, args)
            losses.append(loss)
            with torch.inference_mode():
                positives[painting.digest] = InSTStyleConditioning.execute(bench.studio.clip, style, "*", 1.0).result[0]
        row("learning", schedule, f"{sum(losses) / len(losses):.4f}", positives)
    print(f"\n{bench.heading()}; {args.steps} sampling steps from repaint strength {strength}, {args.learning_steps} "
          "learning steps\n")
    print(markdown(HEAD, rows))
    return 0
