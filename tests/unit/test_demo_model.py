"""The demo model's packing, its training pictures, its space of styles, and that an interruption changes nothing."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import demo  # noqa: E402
import demo_model  # noqa: E402
import demo_pictures  # noqa: E402
import demo_styles  # noqa: E402
import train_demo_model as train  # noqa: E402


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- the file ----

@pytest.fixture()
def little(monkeypatch):
    """A text encoder that is drawn in no time."""
    monkeypatch.setattr(demo_model, "LAYERS", 1)
    monkeypatch.setattr(demo_model, "VOCABULARY", 4000)
    monkeypatch.setattr(demo_model, "HIDDEN", 64)


@pytest.fixture()
def weights():
    return {f"{demo_model.UNET}a.weight": random(6, 5, 3, 3), f"{demo_model.UNET}a.bias": random(6),
            f"{demo_model.VAE}b.weight": random(4, 9) * 1e-3, f"{demo_model.VAE}vae_scale": torch.tensor(0.18215)}


def test_int8_keeps_every_row_to_a_percent_and_vectors_to_a_half(weights):
    small = demo_model.packed(weights)
    assert {v.dtype for k, v in small.items() if weights.get(k, torch.zeros(1)).ndim > 1} == {torch.int8}
    back = demo_model.unpacked(small)
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].shape == value.shape and back[key].dtype == torch.float16
        assert (back[key].float() - value).norm() / value.norm() < (0.007 if value.ndim > 1 else 1e-3)


def test_join_adds_the_text_encoder_and_writes_the_whole_file(little, weights, tmp_path):
    demo_model.ship(tmp_path / "shipped", weights, {"steps": 3})
    demo_model.join(tmp_path / "shipped", tmp_path / "models" / "demo.safetensors")
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["demo.safetensors"]
    found = load_file(tmp_path / "models" / "demo.safetensors")
    text = {demo_model.TEXT + k for k in demo_model.text_encoder()}
    assert found.keys() == weights.keys() | text
    assert {v.dtype for v in found.values()} == {torch.float16}


def test_join_refuses_other_files_and_other_random_numbers(little, weights, tmp_path, monkeypatch):
    target = tmp_path / "demo.safetensors"
    save_file(weights, tmp_path / "other")
    with pytest.raises(ValueError, match="not a demo model"):
        demo_model.join(tmp_path / "other", target)
    demo_model.ship(tmp_path / "shipped", weights, {})
    monkeypatch.setattr(demo_model, "TEXT_SEED", 1)
    with pytest.raises(ValueError, match="draws other random numbers"):
        demo_model.join(tmp_path / "shipped", target)
    assert not target.exists()


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(Exception):  # noqa: B017 (whatever safetensors raises)
        demo_model.save_whole(tmp_path / "file", {"a": "no tensor"})
    assert not any(tmp_path.iterdir())


def test_the_text_encoder_depends_on_the_seed_alone_and_starts_learning_in_the_middle(little):
    torch.manual_seed(0)
    once = demo_model.text_encoder()
    torch.manual_seed(1)
    again = demo_model.text_encoder()
    assert all(torch.equal(once[k], again[k]) for k in once)
    table = once["embeddings.token_embedding.weight"].float()
    torch.testing.assert_close(table.norm(dim=1).mean().item(), demo_model.TOKEN_NORM, rtol=0.01, atol=0)
    torch.testing.assert_close(table[demo_model.NEUTRAL_TOKEN] / demo_model.TOKEN_NORM, demo_model.neutral_style(),
                               atol=1e-3, rtol=0)


# ---- training pictures ----

def picture(path: Path, seed: int, size: int = 320) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((size, size), Image.BICUBIC).save(path, "WEBP", quality=95)
    return path


@pytest.fixture()
def sources(little, tmp_path):
    (tmp_path / "weights").mkdir()
    save_file({"features.0.weight": random(2, 3)}, tmp_path / "weights" / "lpips-alex.safetensors")
    save_file({f"features.{i}.{part}": random(2, 3) for i in (*demo_pictures.VGG_KEPT, 19)
               for part in ("weight", "bias")}, tmp_path / "weights" / "vgg16.safetensors")
    return [picture(tmp_path / "a" / f"{chr(97 + i)}.webp", i) for i in range(8)]


def packed(tmp_path, paths, name="pack", **options) -> demo_pictures.Pack:
    demo_pictures.pack(tmp_path / name, tmp_path / "weights", paths=paths, held_out=2, **options)
    return demo_pictures.read(tmp_path / name)


def test_packing_is_repeatable_and_keeps_a_part_for_judging(tmp_path, sources):
    pack = packed(tmp_path, sources)
    side = demo_pictures.SIDE
    assert pack.training.shape == (6, 3, side, side) and pack.held_out.shape == (2, 3, side, side)
    assert pack.training.dtype == torch.uint8
    assert "features.17.bias" in pack.vgg and "features.19.bias" not in pack.vgg
    demo_model.check(demo_model.text_encoder(), pack.proof)
    again = packed(tmp_path, list(reversed(sources)), "again")
    assert torch.equal(pack.training, again.training) and torch.equal(pack.held_out, again.held_out)


def test_the_demo_pictures_and_what_looks_like_them_are_left_out(tmp_path, sources):
    content = picture(tmp_path / "a" / Path(demo.CONTENT[1]).name, 100)
    same_subject = picture(tmp_path / "a" / f"{demo_pictures.subject(content)}-1.webp", 101)
    copy_of_it = picture(tmp_path / "a" / "copy.webp", 100, 340)
    copy_of_other = picture(tmp_path / "a" / "other.webp", 0, 340)
    found = [p for p, _ in demo_pictures.collect(
        [*sources, content, same_subject, copy_of_it, copy_of_other], [content])]
    assert sorted(found) == sorted(sources)


def test_a_subject_is_on_one_side_only_and_the_size_is_bounded(tmp_path, sources):
    frames = [picture(tmp_path / "a" / f"{chr(97 + i)}-{n}.webp", 8 * n + i) for i in range(8) for n in range(1, 4)]
    found = list(demo_pictures.collect(frames, []))
    arranged = demo_pictures.arranged(found, 10**9, 4)
    training, judging = ({demo_pictures.subject(p) for p, _ in part} for part in (arranged[:-4], arranged[-4:]))
    assert training and judging and not training & judging
    size = sum(len(data) for _, data in found) // 2
    assert 0 < sum(len(data) for _, data in demo_pictures.arranged(found, size, 2)) <= size
    with pytest.raises(ValueError, match="more than the 40 held-out"):
        demo_pictures.arranged(found, 10**9, 40)


def test_long_pictures_give_both_ends_and_blank_ones_nothing(tmp_path):
    left, right = Image.new("RGB", (300, 300), "red"), Image.new("RGB", (300, 300), "blue")
    long = Image.new("RGB", (600, 300))
    long.paste(left, (0, 0))
    long.paste(right, (300, 0))
    ends = list(demo_pictures.squares(long))
    assert [e.getpixel((150, 150)) for e in ends] == [(255, 0, 0), (0, 0, 255)]
    path = tmp_path / "blank.png"
    left.save(path)
    assert list(demo_pictures.collect([path], [])) == []


# ---- styles ----

@pytest.fixture()
def features():
    return [random(40, n, seed=n) * scale for n, scale in ((73, 1.0), (90, 5.0), (384, 0.1), (300, 2.0))]


def test_styles_lie_at_right_angles_to_each_other_and_to_what_they_share(features):
    space = demo_styles.StyleSpace.of(features)
    parts = space.parts(features)
    assert parts.shape == (40, demo_styles.TOKENS, 768)
    assert (parts @ space.neutral).abs().max() < 1e-3
    products = torch.einsum("bid,bjd->bij", parts, parts)
    assert (products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    lengths = parts.square().sum(2).mean(0)
    torch.testing.assert_close(lengths, torch.full_like(lengths, demo_styles.STYLE_REACH**2), rtol=0.05, atol=0)


def test_one_token_holds_all_that_four_hold(features):
    space = demo_styles.StyleSpace.of(features)
    parts = space.parts(features)[:2]
    tokens = space.tokens(parts, torch.tensor([4, 1]))
    torch.testing.assert_close(tokens[0].norm(dim=1), torch.full((4,), demo_model.TOKEN_NORM))
    torch.testing.assert_close(tokens[1, 0].norm().item(), demo_model.TOKEN_NORM, rtol=1e-4, atol=0)
    # What it has beside the shared direction, in the proportions of the parts.
    scaled = tokens[1, 0] / (tokens[1, 0] @ space.neutral)
    torch.testing.assert_close(scaled - space.neutral, parts[1].sum(0) / 2, atol=1e-4, rtol=0)


def test_style_features_know_colour_and_texture_but_not_place():
    from inst_core.metrics import alexnet

    network = alexnet.AlexNet({k: random(*s, seed=i) / max(1, torch.Size(s[1:]).numel()) ** 0.5
                               for i, (k, s) in enumerate(alexnet.shapes().items())})
    stripes = (torch.linspace(0, 120, 128).sin() / 2 + 0.5).expand(1, 3, 128, 128)
    red = stripes * torch.tensor([1.0, 0.2, 0.2]).view(1, 3, 1, 1)
    found = [demo_styles.style_features(x, network) for x in (stripes, red, stripes.mT, stripes.roll(16, 3))]
    colours, textures = ([torch.cat(f[i:j], 1) for f in found] for i, j in ((0, 1), (1, 4)))
    assert (colours[0] - colours[1]).norm() > 10 * (colours[0] - colours[2]).norm()
    turned, moved = ((textures[0] - t).norm() / textures[0].norm() for t in (textures[2], textures[3]))
    assert turned > 4 * moved


# ---- noise ----

def test_noise_levels_are_those_of_sd1():
    sigmas = train.noise_levels(torch.device("cpu"))
    torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([0.0292, 14.6146]), atol=1e-4, rtol=1e-5)


def test_noise_that_remembers_is_where_sampling_starts():
    photograph, target, noise, sigma = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1), random(2, 4, 3, 3, seed=2), 2.5
    start = torch.full((2,), sigma)
    once = train.remembering(noise, photograph, target, start, torch.ones(2))
    torch.testing.assert_close(target + sigma * once, photograph + sigma * noise)
    # Stochastic inversion starts at the photograph plus the noise that a perfect model predicts there.
    twice = train.remembering(noise, photograph, target, start, torch.full((2,), 2.0))
    torch.testing.assert_close(target + sigma * twice, photograph + sigma * once)
    torch.testing.assert_close(train.remembering(noise, photograph, target, start, torch.zeros(2)), noise)


# ---- interruptions ----

def options(folder: Path, *more: str):
    return train.parse(["unet", "--folder", str(folder), "--device", "cpu", "--log-every", "2", *more])


def trained(folder: Path, stops: tuple[int, ...], steps: int = 9):
    """A linear model after ``steps``; the process dies after each of ``stops`` steps and starts again."""
    folder.mkdir()
    for stop in (*stops, steps):
        torch.manual_seed(stop)  # what else the process drew must not matter
        model = nn.Linear(3, 3)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.1)
        run = train.Run(folder / "model.pt", model, options(folder, "--save-minutes", "0"), steps, 1e-2, 0.9)
        for _ in run.going():
            x = torch.randn(4, 3, generator=run.generator)
            run.learn((run.model(x) - x).square().mean())
            if run.due(2):
                run.note(4)
            if run.step == stop:
                run.save()
                break
    return run


def test_resuming_is_bit_equal(tmp_path):
    straight, broken = trained(tmp_path / "a", ()), trained(tmp_path / "b", (2, 5))
    assert straight.step == broken.step == 9
    for a, b in zip(straight.parameters + straight.average, broken.parameters + broken.average, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(straight.generator.get_state(), broken.generator.get_state())
    assert [row["step"] for row in straight.log] == [1, 2, 4, 6, 8, 9]
    assert (tmp_path / "a" / "model-curves.png").exists() and (tmp_path / "a" / "model-log.csv").exists()


def test_dying_while_saving_keeps_the_state_before(tmp_path, monkeypatch):
    run = trained(tmp_path / "a", ())
    before = run.path.read_bytes()

    def dies(state, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    assert run.path.read_bytes() == before


def test_the_average_is_used_and_given_back(tmp_path):
    run = trained(tmp_path / "a", ())
    own = [p.detach().clone() for p in run.parameters]
    with run.averaged():
        assert all(torch.equal(p, a) for p, a in zip(run.parameters, run.average, strict=True))
    assert all(torch.equal(p, o) for p, o in zip(run.parameters, own, strict=True))
    assert not torch.equal(run.average[0], own[0])


def test_a_time_limit_ends_a_call_and_saves(tmp_path):
    model = nn.Linear(1, 1)
    run = train.Run(tmp_path / "model.pt", model, options(tmp_path, "--minutes", "1e-9"), 5, 1e-2, 0.9)
    assert list(run.going()) == []
    assert run.path.exists() and not run.done


def test_a_stage_can_be_fitted_into_a_call(tmp_path, monkeypatch):
    """Ten seconds at a step a second, though a thousand steps were asked for: the rate ends at zero."""
    now = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(train, "PACE", 2)
    model = nn.Linear(1, 1)
    chosen = options(tmp_path, "--minutes", str(10 / 60), "--finish")
    run = train.Run(tmp_path / "model.pt", model, chosen, 1000, 1, 0.9)
    rates = []
    for _ in run.going():
        now[0] += 1
        run.learn(model(torch.ones(1)).sum())
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert run.done and 9 <= run.step <= 11
    assert rates[-1] < 0.6 * max(rates)
