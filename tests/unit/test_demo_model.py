"""The demo model's laboratory: its files, its text encoder, its samples, and that an interruption changes nothing."""
import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import demo
import demo_model
import numpy as np
import pytest
import torch
import whole
from demo_model import (
    autoencoder,
    checkpoint,
    denoiser,
    networks,
    pairs_file,
    pictures,
    prompts,
    quality,
    text,
    training,
)
from PIL import Image
from torch import nn


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- the shipped file ----

@pytest.fixture()
def little(monkeypatch):
    """A text encoder that is drawn in no time."""
    monkeypatch.setattr(text, "LAYERS", 1)
    monkeypatch.setattr(text, "VOCABULARY", 4000)
    monkeypatch.setattr(text, "READING", {"self_attn.q_proj": (768, 768)})
    monkeypatch.setattr(text, "ADDING", {"self_attn.out_proj": (768, 768)})


@pytest.fixture()
def shipped(little, tmp_path) -> Path:
    """A small file of the kind."""
    unet = {"middle.conv.weight": random(6, 4, 3, 3), "middle.conv.bias": random(6),
            "middle.attn1.to_q.weight": random(4, 4)}
    path = tmp_path / "shipped.safetensors"
    checkpoint.ship(path, unet, {"encoder.0.weight": random(16, 3, 3, 3)}, {"mean": random(100)}, {"steps": 3})
    return path


def test_the_shipped_file_of_this_repository_is_whole_and_small():
    held = checkpoint.open_shipped()
    assert checkpoint.SHIPPED.stat().st_size <= 20e6
    assert held.space["map"].shape == (100, 768) and len(held.autoencoder) == 134
    json.loads(held.recipe)


def test_int8_keeps_every_row_to_a_percent_and_vectors_to_a_half():
    weights = {"a.weight": random(6, 5, 3, 3), "a.bias": random(6), "b.weight": 1e-3 * random(4, 9)}
    small = checkpoint.packed(weights)
    assert {v.dtype for k, v in small.items() if k.endswith("weight")} == {torch.int8}
    back = checkpoint.unpacked(small)
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert (back[key] - value).norm() / value.norm() < (0.007 if value.ndim > 1 else 1e-3)


def test_joining_widens_pads_and_adds_the_text_encoder(shipped, tmp_path):
    target = tmp_path / "models" / "demo.safetensors"
    checkpoint.join(shipped, target)
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    found, metadata = whole.read_tensors(target)
    assert found["model.diffusion_model.middle.conv.weight"].shape == (12, 8, 3, 3)
    assert found["first_stage_model.taesd_encoder.0.weight"].shape == (64, 3, 3, 3)
    assert {checkpoint.TEXT + k for k in text.text_encoder()} <= found.keys()
    assert found["model.diffusion_model.middle.attn1.to_q.weight"].dtype == torch.float32  # halved by a root
    assert metadata["modelspec.resolution"] == "256x256" and json.loads(metadata["inst.recipe"]) == {"steps": 3}


def spoiled(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2:]
    elif how == "empty":
        data.clear()
    elif how == "one bit":
        data[-1] ^= 1
    elif how == "recipe":
        data[:] = data.replace(b'{\\"steps\\": 3}', b'{\\"steps\\": 4}')
    elif how == "other file":
        header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
        data[:] = struct.pack("<Q", len(header)) + header
    path.write_bytes(data)


@pytest.mark.parametrize("how, said", [("cut", "is cut"), ("empty", "is cut"), ("one bit", "was altered"),
                                       ("recipe", "was altered"), ("other file", "no demo model"),
                                       ("gone", "There is no file")])
def test_a_spoiled_file_is_refused_with_a_sentence(shipped, tmp_path, how, said):
    spoiled(shipped, how) if how != "gone" else shipped.unlink()
    with pytest.raises(ValueError, match=said):
        checkpoint.join(shipped, tmp_path / "demo.safetensors")
    assert not (tmp_path / "demo.safetensors").exists()


def test_a_torch_that_draws_other_numbers_is_found_out(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "SEED", 1)
    with pytest.raises(ValueError, match="draws other random numbers.*--checkpoint"):
        checkpoint.join(shipped, tmp_path / "demo.safetensors")


def test_the_command_says_so_and_fails(shipped, tmp_path):
    """What tools/dev.py reads: where there is only torch, with a file that is cut."""
    spoiled(shipped, "cut")
    done = subprocess.run([sys.executable, Path(demo_model.__file__).parent, "join", shipped, tmp_path / "x"],
                          capture_output=True, text=True)
    assert done.returncode == 1 and "is cut" in done.stderr and "Traceback" not in done.stderr


def test_the_text_encoder_depends_on_the_seed_alone_and_starts_learning_in_the_middle(little):
    torch.manual_seed(0)
    once = text.text_encoder()
    torch.manual_seed(1)
    again = text.text_encoder()
    assert all(torch.equal(once[k], again[k]) for k in once)
    assert not any(once[k].any() for k in once if "out_proj" in k)
    torch.testing.assert_close(once[text.TOKENS][text.NEUTRAL_TOKEN].float(), text.TOKEN_NORM * text.neutral_style(),
                               atol=1e-3, rtol=0)


# ---- styles ----

def test_style_vectors_become_words_beside_the_neutral_one(monkeypatch):
    monkeypatch.setattr(prompts, "KEPT", 12)
    vectors = random(80, 100) @ torch.diag(torch.linspace(3, 0.1, 100)) + random(100, seed=1)
    space = prompts.StyleSpace.of(vectors)
    apart = (vectors - space.mean) @ space.map
    assert (apart @ text.neutral_style()).abs().max() < 1e-3
    assert apart.square().sum(1).mean().sqrt() == pytest.approx(prompts.REACH, rel=0.05)
    words = space.words(vectors)
    torch.testing.assert_close(words.norm(dim=1), torch.full((80,), text.TOKEN_NORM))
    torch.testing.assert_close(space.words(space.mean[None])[0], text.TOKEN_NORM * text.neutral_style())
    assert (space.words(vectors, 1.0) - words).abs().max() > 0.01


# ---- samples ----

def some_pairs(count: int = 12, side: int = 32) -> pairs_file.Pairs:
    return pairs_file.Pairs(random(count, 4, side, side).half(), random(count, 4, side, side, seed=1).half(),
                            random(count, 100, seed=2), random(count, 2, 100, seed=3))


def test_training_runs_along_the_line_from_the_photograph_to_the_target(monkeypatch):
    """Where sampling starts, a sample is the photograph plus Gaussian noise; the nearer to the end, the less of it."""
    monkeypatch.setattr(denoiser, "STARTS", (700, 700))
    monkeypatch.setattr(denoiser, "OTHER_SHARE", 0.0)
    many, nobody = 4000, torch.zeros(4000, dtype=torch.bool)
    photo, target = torch.full((many, 1, 1, 1), 30.0), torch.full((many, 1, 1, 1), -10.0)
    sigmas = networks.noise_levels()
    for alone in (nobody, ~nobody):
        noise, timestep = denoiser.noise_with_photograph(photo, target, alone, torch.Generator().manual_seed(0))
        sigma = sigmas[timestep].view(-1, 1, 1, 1)
        on_the_line = target + (photo - target) * sigma / sigmas[700] * (not alone.any())
        gaussian = (target + sigma * noise - on_the_line) / sigma
        assert gaussian.mean().abs() < 0.06 and gaussian.std() == pytest.approx(1.0, abs=0.05)
        assert timestep.max() > 650 and (timestep.max() <= 700) == (not alone.any())


def test_what_is_painted_and_in_which_words():
    pairs = some_pairs(4)
    kind, yes, no = torch.tensor([0.05, 0.2, 0.28, 0.9]), torch.ones(4).bool(), torch.zeros(4).bool()
    target, style = denoiser.told(pairs, kind, no)
    assert torch.equal(style, torch.stack([pairs.own[0, 0], pairs.style[1], pairs.own[2, 1], pairs.style[3]]))
    assert torch.equal(target[2], pairs.photo[2].float()) and torch.equal(target[[0, 1, 3]],
                                                                         pairs.target[[0, 1, 3]].float())
    target, style = denoiser.told(pairs, kind, yes)
    assert torch.equal(target[0], pairs.photo[0].float()) and torch.equal(style[0], pairs.own[0, 1])


class Listening(nn.Module):
    """Predicts a number from the words alone: 10, the more they point along ``axis``."""

    def __init__(self):
        super().__init__()
        self.axis = nn.Parameter(nn.functional.normalize(random(768, seed=7), dim=0))

    def forward(self, x, timestep, context):
        return torch.zeros_like(x) + (context @ self.axis - 10).mean(1).view(-1, 1, 1, 1)


def test_words_are_found_downhill_and_mixed_with_told_ones():
    reader = SimpleNamespace(space=prompts.StyleSpace, prompts=SimpleNamespace(star=0),
                             of_rows=lambda rows, words: words)
    unet, neutral, generator = Listening(), prompts.StyleSpace.neutral_word(), torch.Generator().manual_seed(0)
    found = denoiser.find_words(unet, reader, generator, False, random(5, 4, 32, 32))
    apart = found - neutral
    assert nn.functional.cosine_similarity(apart, unet.axis, -1).min() > 0.99 and unet.axis.grad is None
    reach = apart.norm(dim=-1) / neutral.norm()
    assert ((denoiser.FOUND_REACH[0] <= reach) & (reach <= denoiser.FOUND_REACH[1])).all() and reach.std() > 0.05

    mixed = denoiser.mix(torch.zeros(2000, 768), torch.ones(2000, prompts.TOKENS, 768), generator)[:, 0, 0]
    assert (mixed == 1).float().mean() == pytest.approx(denoiser.FOUND, abs=0.05)
    assert ((mixed > 0) & (mixed < 1)).float().mean() == pytest.approx(denoiser.BOTH, abs=0.05)


def test_crops_of_a_pair_show_the_same_place():
    pairs = some_pairs()
    both = denoiser.cropped([pairs.photo, pairs.photo + 1], torch.Generator().manual_seed(0))
    assert both[0].shape[2:] == (denoiser.CROP, denoiser.CROP) and torch.equal(both[0] + 1, both[1])
    rows = torch.arange(256).view(1, 1, 256, 1).expand(3, 3, 256, 256).to(torch.uint8)
    places = torch.arange(32.0).view(1, 1, 32, 1).expand(3, 4, 32, 32)
    latents, shown = autoencoder.aligned_crops(places, rows, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shown[:, 0, ::8, ::8] * 255, 8 * latents[:, 0], atol=1e-3, rtol=0)


def test_pairs_come_back_from_their_file_with_the_last_held_out(tmp_path):
    pairs = some_pairs()
    pairs_file.save_pairs(tmp_path / "pairs.int8.safetensors", pairs, held_out=2)
    pairs_file.save_pairs(tmp_path / "pairs-more.int8.safetensors", pairs, held_out=0)
    ours, judged = pairs_file.read_pairs(tmp_path)
    assert (len(ours), len(judged)) == (22, 2)
    torch.testing.assert_close(judged.photo.float(), pairs.photo[-2:].float(), atol=0.03, rtol=0)
    with pytest.raises(ValueError, match="holds no pairs"):
        pairs_file.read_pairs(tmp_path / "elsewhere")


# ---- training ----

def little_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 1)).to(
        memory_format=torch.channels_last)


def trained(folder: Path, *stops: int, steps: int = 7) -> training.Training:
    """After ``steps``; the process dies after each of ``stops`` and another goes on."""
    for stop in (*stops, steps):
        torch.manual_seed(stop)  # what else a process drew must not matter
        run = training.Training("try", folder / "try.pt", little_network(), (0.05, 0.01), lambda *_: False)
        for step in run.going(5, lambda: None):
            if step == steps:
                break
            x = torch.randn(3, 4, 6, 6, generator=run.generator)
            run.learn((run.model(x) - x.flip(1)).square().mean())
            if run.step == stop:
                run.save()
                break
    return run


def test_an_interrupted_training_gives_the_same_bits(tmp_path):
    straight, broken = trained(tmp_path / "a"), trained(tmp_path / "b", 2, 5)
    assert straight.step == broken.step == 7
    for one, other in ((straight.model, broken.model), (straight.averaged, broken.averaged)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(straight.averaged[0].weight, straight.model[0].weight)


def test_dying_while_saving_keeps_what_was_saved(tmp_path, monkeypatch):
    run = trained(tmp_path)
    run.save()
    before = run.path.read_bytes()

    def dies(state, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    assert run.path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["try.pt"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_kernels_as_it_moves_matrices(layout):
    kernel = nn.Parameter(random(6, 4, 3, 3).to(memory_format=layout))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    ours = training.MatrixMuon([kernel], 0.1)
    stock = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        kernel.grad = random(6, 4, 3, 3, seed=seed)
        matrix.grad = kernel.grad.flatten(1).clone()
        ours.step()
        stock.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), atol=0.02, rtol=0)  # it rounds to bfloat16
    assert (kernel.detach().flatten(1) - random(6, 4, 3, 3).flatten(1)).abs().max() > 0.05


@pytest.mark.parametrize("finish, share", [(False, 1.0), (True, training.LOWEST)])
def test_the_rate_falls_only_when_it_is_meant_to(tmp_path, monkeypatch, finish, share):
    run = training.Training("try", tmp_path / "try.pt", little_network(), (0.05, 0.01), lambda *_: False)
    run.step, run.began = 1000, 0
    clock = iter((0.0, 59.99))  # s, of a minute
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    next(run.going(1, lambda: None, finish))
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == pytest.approx([0.05 * share, 0.01 * share])


def test_what_is_gone_on_from_is_copied_once(tmp_path):
    for name, content in (("a/unet.safetensors", "old"), ("b/unet.safetensors", "new"),
                          ("a/pairs.int8.safetensors", "pairs")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for sources in (["b", "a"], ["a"]):
        denoiser.adopt([tmp_path / s for s in sources], tmp_path / "own")
    assert {p.name: p.read_text() for p in (tmp_path / "own").iterdir()} == {
        "unet.safetensors": "new", "pairs.int8.safetensors": "pairs"}


# ---- pictures ----

def picture(path: Path, seed: int, size: int = 320) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((size, size), Image.BICUBIC).save(path, "WEBP", quality=95)
    return path


def test_pictures_kept_back_and_near_duplicates_are_not_trained_on(tmp_path):
    tested = picture(tmp_path / "a" / pictures.KEPT_BACK[0], 0)
    sibling = picture(tmp_path / "a" / "api_bria_image_edit-7.webp", 1)  # another view of the same subject
    copy = picture(tmp_path / "b" / "copy.webp", 0, size=340)
    others = [picture(tmp_path / "b" / f"{name}.webp", seed) for seed, name in enumerate("abc", 2)]
    found = {path.name for path, _ in pictures.collect([tested, sibling, copy, *others], [tested])}
    assert found == {"a.webp", "b.webp", "c.webp"}
    pictures.pack(tmp_path / pictures.NAME, others, [tested], held_out=1)
    packed = pictures.read(tmp_path)
    assert (len(packed.training), len(packed.held_out)) == (2, 1)


def test_pictures_of_one_subject_stay_on_one_side(tmp_path):
    paths = [picture(tmp_path / f"{name}-{i}.webp", 10 * ord(name) + i) for name in "abcd" for i in range(3)]
    found = list(pictures.collect(paths, []))
    arranged = pictures.arranged(found, 4)
    training_side, judging = ({pictures.subject(p) for p, _ in part} for part in (arranged[:-4], arranged[-4:]))
    assert training_side and judging and not training_side & judging
    with pytest.raises(ValueError, match="more than the 40 held-out"):
        pictures.arranged(found, 40)


# ---- the demo ----

def test_a_checkpoint_runs_at_the_size_it_was_made_for(tmp_path, shipped):
    checkpoint.join(shipped, tmp_path / "joined.safetensors")
    whole.save_tensors(tmp_path / "sd1.safetensors", {"model.diffusion_model.x": torch.zeros(1)})
    whole.save_tensors(tmp_path / "xl.safetensors", {"conditioner.embedders.0.x": torch.zeros(1)})
    (tmp_path / "old.ckpt").write_bytes(b"PK something else")
    sides = {p.name: demo.native_side(p) for p in tmp_path.iterdir() if p.name != "shipped.safetensors"}
    assert sides == {"joined.safetensors": 256, "sd1.safetensors": 512, "xl.safetensors": 1024, "old.ckpt": 512}


# ---- what the quality page concludes ----

def row(nearest: float = 1.0, alarms: float = 0.0, **measures: float) -> quality.Summary:
    known = dict.fromkeys((key for _, key in quality.COLUMNS), 0.5)
    return quality.Summary(known | measures, nearest, alarms, 1.0)


def good() -> tuple[dict, dict]:
    return ({quality.CONTENT_COPY: row(gram=0.8), quality.COLOURS: row(gram=0.5), quality.UNRELATED: row(lpips=0.8),
             quality.TOLD: row(gram=0.29), quality.INST: row(gram=0.3, lpips=0.5)},
            {quality.INST: row(gram=0.3), "no style": row(gram=0.7), "wrong style": row(gram=0.6),
             "embedding:": row(gram=0.3), "no inversion": row(edge_correlation=0.3)})


def short(whole, few, learning=50.0) -> list[str]:
    return [line for line in quality.promises(whole, few, learning) if not line.startswith("- holds")]


def test_each_promise_can_fail():
    assert short(*good()) == [] and len(quality.promises(*good(), 50.0)) == 11
    for part, name, change, said in (
            (0, quality.INST, {"gram": 0.6}, "times closer"), (0, quality.COLOURS, {"gram": 0.2}, "colour transfer"),
            (0, quality.INST, {"lpips": 0.75}, "unrelated"), (0, quality.INST, {"nearest": 0.79}, "right style"),
            (0, quality.INST, {"alarms": 0.01}, "leakage"), (0, quality.TOLD, {"gram": 0.2}, "told by the teacher"),
            (1, "no style", {"gram": 0.31}, "no style"), (1, "wrong style", {"gram": 0.31}, "wrong style"),
            (1, "embedding:", {"leakage": 0.51}, "embedding"),
            (1, "no inversion", {"edge_correlation": 0.6}, "inversion")):
        tables = good()
        tables[part][name] = row(**{"lpips": 0.5, "gram": 0.3} | change)
        assert any(said in line and "falls short by" in line for line in short(*tables)), said
    assert any("learning" in line for line in short(*good(), learning=61.0))


def test_the_nearest_style_and_alarms_are_counted():
    def result(leakage: float, **grams: float) -> quality.Result:
        return quality.Result(Path(), {"leakage": leakage, "gram": 0.2}, grams, 1.0)

    found = [result(0.1, a=0.1, b=0.2), result(0.3, a=0.3, b=0.2), result(0.0, a=0.3, b=0.2), result(0.0, a=0.3, b=0.2)]
    counted = quality.summary(found, ["a", "a", "b", "b"], [result(0.5)] * 4)
    assert (counted.nearest, counted.alarms) == (0.75, 0.25)


def test_ablations_change_what_exists():
    assert all(quality.replace(quality.BASE, **changes) != quality.BASE for changes in quality.ABLATIONS.values())
