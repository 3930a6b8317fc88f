"""Nodes as users meet them: odd pictures, missing parts, failing disks."""
import os
import random
import re
import threading
from dataclasses import replace

import comfy.model_management
import comfy.sample
import pytest
import torch
from graph import learn
from inst_pack.inst_core import host, preprocess
from inst_pack.inst_core.encoders import Attentions
from inst_pack.inst_core.recipes import choose_recipe
from inst_pack.inst_core.style import Style, load_style
from inst_pack.nodes.learn import InSTLearnStyle
from inst_pack.nodes.style import NO_EMBEDDINGS, InSTImportEmbeddings, InSTStyleConditioning

import nodes as host_nodes


@pytest.mark.parametrize("encoder", ["direct", "attention", "paper"])
def test_learn_saves_a_file_that_equals_its_output(small, pictures, clip_vision, encoder):
    result = learn(small, pictures[:1], encoder, clip_vision=clip_vision, name="wave", prompt="a hill, *")
    style, loss = result.result
    path = host.files.style_folders()[0] / "wave_00001.safetensors"
    saved = load_style(path)
    assert torch.equal(saved.vectors["clip_l"], style.vectors["clip_l"])
    assert style.tokens == (1 if encoder == "paper" else 2)
    assert saved.metadata["inst.text"] == "a hill, *" and saved.metadata["inst.steps"] == "2"
    assert saved.metadata["inst.start"] == "painting"
    assert saved.metadata["modelspec.thumbnail"].startswith("data:image/jpeg") and saved.family == "SD15"
    assert saved.metadata["inst.base_model"] == "inst-small.safetensors"
    assert len(loss["loss"]) >= 2 and f"{path.name} is saved" in result.ui.as_dict()["text"][0]
    clip = small[1]
    stock = host_nodes.CLIPTextEncode().encode(clip, "a house, embedding:wave_00001")[0]
    own = InSTStyleConditioning.execute(clip, style, "a house, *", 1.0).result[0]
    assert torch.equal(stock[0][0], own[0][0])


def test_quality_and_resolution_are_what_nothing_else_decides(small, pictures):
    """An encoder or a number that a saved workflow holds counts; ``auto`` takes the quality's, and the model's size."""
    def learned(encoder, **more):
        return learn(small, pictures[:1], encoder, **more).result[0]

    assert host.learning.side_to_learn_at(small[0], 0) == 512 and host.learning.side_to_learn_at(small[0], 96) == 96
    assert learned("auto").encoder == "direct"
    with pytest.raises(ValueError, match="choose quality 'good'"):
        learned("auto", quality="like the paper")
    with pytest.raises(ValueError, match="resolution is 32"):
        learned("direct", resolution=32)
    assert "Expected a file name" in InSTLearnStyle.validate_inputs("a:b")


def test_a_style_is_learned_outside_of_what_content_names(small, pictures):
    """Its words and those that it is learned on from; the file says what was kept out."""
    style = learn(small, pictures[:1], learning_rate=0.02, content="sunflower, vase").result[0]
    words = host.text.word_vectors(small[1], "painting")["clip_l"]
    basis = host.text.content_bases(small[1], "sunflower, vase", {"clip_l": words})["clip_l"]

    def inside(vectors) -> float:
        return ((vectors - words) @ basis.T).norm() / (vectors - words).norm()

    assert inside(style.vectors["clip_l"]) < 1e-5 < 1e-3 < inside(style.encoder_weights["vectors.clip_l"])
    assert style.metadata["inst.content"] == "sunflower, vase" and len(basis) >= 2
    recipe = choose_recipe("direct", 2)
    assert torch.equal(host.learning.make_encoder(small[1], recipe, style)(None)["clip_l"], style.vectors["clip_l"])


def test_stages_are_learned_kept_and_learned_on(small, pictures):
    result = learn(small, pictures[:1], stages=2, learning_rate=0.02, name="wave")
    style, text = result.result[0], result.ui.as_dict()["text"][0]
    saved = load_style(host.files.style_folders()[0] / "wave_00001.safetensors")
    assert len(style.stages) == len(saved.stages) == 2 and "2 stages, the middle one" in text
    assert not torch.equal(*(stage.vectors["clip_l"] for stage in saved.stages))
    assert torch.equal(saved.vectors["clip_l"], saved.stages[1].vectors["clip_l"])
    recipe = choose_recipe("direct", 2)
    again = host.learning.make_encoders(small[1], recipe, saved, "all", "", 2)
    assert all(torch.equal(one(None)["clip_l"], stage.vectors["clip_l"])
               for one, stage in zip(again, saved.stages, strict=True))
    plain = Style(saved.vectors, family="SD15")
    assert len(host.learning.make_encoders(small[1], recipe, plain, "all", "", 3)) == 3
    with pytest.raises(ValueError, match="a style of 2 stages by encoder direct; stages is 1"):
        learn(small, pictures[:1], continue_from=saved)
    for stages in (0, 7):
        with pytest.raises(ValueError, match=f"stages is {stages}; expected 1 to 6"):
            host.learning.make_encoders(small[1], recipe, None, "all", "", stages)
    with pytest.raises(ValueError, match="layers is 'nope'; expected one of all, late, style block"):
        host.training.check_layers(small[0], "nope")
    with pytest.raises(ValueError, match="stages is 3 and adapter_rank is 8"):
        learn(small, pictures[:1], stages=3, adapter_rank=8)


@pytest.mark.parametrize("name", ["direct", "paper"])
def test_what_a_mask_leaves_out_is_not_seen(small, pictures, clip_vision, name):
    """Whatever is under it: neither by the VAE nor by CLIP."""
    model, _, vae = small
    mask = torch.zeros(1, *pictures.shape[1:3])
    mask[:, 40:70, 40:80] = 1
    stained = torch.where(mask.bool().unsqueeze(-1), torch.tensor([0.0, 1.0, 0.0]), pictures[:1])

    def look(image, style_mask):
        seen = host.learning.look_at(preprocess.paintings(image, style_mask), choose_recipe(name), model, vae,
                                     clip_vision, 64)
        features = seen.features and (seen.features.image_embed, seen.features.patches)
        return [t for t in (seen.views, seen.whole, *(features or ()), seen.view_weights, seen.whole_weights)
                if t is not None]

    masked, again, plain = look(pictures[:1], mask), look(stained, mask), look(pictures[:1], None)
    assert all(map(torch.equal, masked, again)) and len(masked) == len(plain) + 2
    assert not any(map(torch.equal, masked, plain))
    views, whole = masked[-2:]
    assert 0 < whole.mean() < 1 and 0 < views.mean() <= 1 and len(views) == len(masked[0])


def test_a_mask_finer_than_the_model_sees_is_refused_before_learning(small, pictures):
    lines = torch.zeros(1, *pictures.shape[1:3])
    lines.view(6, 16, 128)[:, :8] = 1
    with pytest.raises(ValueError, match="style_mask leaves no place of the painting whole"):
        learn(small, pictures[:1], style_mask=lines)


def test_a_model_says_what_size_it_was_made_for(open_checkpoint):
    assert host.size.native_side(open_checkpoint("inst-demo.safetensors")[0]) == 256


def test_what_the_learn_node_says(small, pictures, monkeypatch):
    """Before the first step what goes on; then how much closer; last the file and the verdict, in two short lines."""
    said = []
    monkeypatch.setattr(host.progress, "show_text", lambda text, node: said.append(text))
    shown = learn(small, pictures[:1], steps=3, batch_size=2, layers="late", name="wave").ui.as_dict()["text"][0]
    for expected in ("the VAE encodes 16 crops of the painting", "loading the model and the text encoder a second time",
                     "computing once what the style does not change: sample 6 of 6"):
        assert any(text.startswith(expected) for text in said), expected
    assert re.fullmatch(r"[\d.]+ % closer to the painting by held-out loss, step 3 of 3, at most 0 s left", said[-2])
    first, second = said[-1].splitlines()
    assert shown == said[-1] and first.startswith("wave_00001.safetensors") and "embedding:wave_00001" in first
    assert re.match(r"[\d.]+ % closer to the painting by held-out loss; finished after 3 of 3 steps, \d+ s", second)
    path = host.files.style_folders()[0] / "wave_00001.safetensors"
    assert str(path.parent) not in said[-1] and load_style(path).layers == "late"


def press_cancel(monkeypatch, step: int) -> None:
    """The host's interrupt, while a step is under way."""
    plain = host.progress.LearningView.report

    def report(view, known):
        if known.done == step:
            comfy.model_management.interrupt_current_processing()
        return plain(view, known)

    monkeypatch.setattr(host.progress.LearningView, "report", report)


def test_cancel_keeps_the_best_so_far_in_a_file_of_its_own(small, pictures, monkeypatch):
    said = []
    monkeypatch.setattr(host.progress, "show_text", lambda text, node: said.append(text))
    arguments = {"steps": 6, "batch_size": 8, "name": "wave"}
    with pytest.raises(comfy.model_management.InterruptProcessingException), monkeypatch.context() as patch:
        press_cancel(patch, 5)
        learn(small, pictures[:1], **arguments)
    kept, = host.files.style_folders()[0].glob("*.safetensors")
    assert kept.name == "wave_stopped_00001.safetensors" and said[-1].startswith(kept.name)
    assert "stopped early after 5 of 6 steps" in said[-1]
    stopped = load_style(kept)
    assert stopped.metadata["inst.ended"] == "stopped" and float(stopped.metadata["inst.loss"]) == min(stopped.losses)
    # It is not taken for the finished style the next time.
    assert learn(small, pictures[:1], **arguments).result[0].metadata["inst.steps"] == "6"


@pytest.mark.parametrize("point", range(int(os.environ.get("INST_CANCELS", "1"))))
def test_cancel_at_any_moment(small, pictures, point):
    """INST_CANCELS=20 tries as many. Whatever is there afterwards is whole, and stock nodes compute what they did."""
    model, clip, _ = small
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a house"))

    def sample() -> torch.Tensor:
        return comfy.sample.sample(model, torch.ones(1, 4, 8, 8), 2, 3.0, "euler", "normal", prompt, prompt,
                                   torch.zeros(1, 4, 8, 8), disable_pbar=True, seed=0)

    before = sample()
    moment = random.Random(point).uniform(0.01, 8)
    cancel = threading.Timer(moment, comfy.model_management.interrupt_current_processing)
    cancel.start()
    try:
        learn(small, pictures[:1], steps=100000, batch_size=4)
        raise AssertionError("it was not cancelled")
    except comfy.model_management.InterruptProcessingException:
        pass
    finally:
        cancel.cancel()
    assert torch.equal(sample(), before) and not comfy.model_management.in_training
    for path in host.files.style_folders()[0].glob("*"):
        stopped = load_style(path)
        assert path.suffix == ".safetensors" and float(stopped.metadata["inst.loss"]) == pytest.approx(
            min(stopped.losses), rel=1e-4)


def test_a_run_that_gains_nothing_saves_nothing(small, pictures):
    with pytest.raises(ValueError, match="nothing was learned: .*samples are too few"):
        learn(small, pictures[:1], learning_rate=1e-9, steps=3)
    assert not host.files.style_folders()[0].exists()


def test_zero_is_what_suits_the_encoder(small, pictures, clip_vision, monkeypatch):
    class Enough(Exception):
        pass

    def learn_(model, clip, encoder, painting, recipe, *more):
        raise Enough(f"{recipe.steps} {recipe.batch} {recipe.rate:g}")

    monkeypatch.setattr(host.learning, "learn", learn_)
    with pytest.raises(Enough, match="6100 1 0.0001"):
        learn(small, pictures[:1], "paper", steps=0, batch_size=0, clip_vision=clip_vision)
    with pytest.raises(Enough, match="7 1 0.0001"):
        learn(small, pictures[:1], "paper", steps=7, batch_size=0, clip_vision=clip_vision)


def test_the_learned_encoder_is_in_the_file(small, pictures, clip_vision):
    learn(small, pictures[:1], "paper", clip_vision=clip_vision, steps=6, learning_rate=1e-3)
    saved = load_style(host.files.style_folders()[0] / "style_00001.safetensors")
    attention = Attentions()
    attention.load_state_dict({k.removeprefix("attention."): v for k, v in saved.encoder_weights.items()})
    again = attention(saved.extra["image_embed"].view(1, 1, -1))[0]
    torch.testing.assert_close(again, saved.vectors["clip_l"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("change", [
    lambda p: p[:1, :, :, :1], lambda p: torch.cat([p[:1], torch.ones_like(p[:1, :, :, :1]) * 0.5], -1),
    lambda p: p, lambda p: p[:1, :, :40], lambda p: p[:1, :9, :7]])
def test_pictures_of_every_kind_can_be_learned(small, pictures, change):
    assert learn(small, change(pictures), steps=3).result[0].tokens == 2


def test_learning_can_be_continued_from_a_saved_style(small, pictures):
    first = learn(small, pictures[:1], steps=4)
    saved = load_style(host.files.style_folders()[0] / "style_00001.safetensors")
    second = learn(small, pictures[:1], continue_from=saved, steps=4)
    losses = [r.result[1]["loss"] for r in (first, second)]
    assert losses[1][0] == pytest.approx(min(losses[0]), rel=1e-5)
    with pytest.raises(ValueError, match="2 tokens for clip_l .* cannot be continued by DirectEncoder"):
        learn(small, pictures[:1], continue_from=saved, tokens=3)


def test_start_words_are_where_learning_starts(small, pictures):
    first = [learn(small, pictures[:1], start=s).result[1]["loss"][0] for s in ("painting", "watercolor sketch")]
    assert first[0] != first[1]


@pytest.mark.parametrize("given, said", [
    ({}, None), ({"quality": "like the paper"}, "through CLIP"), ({"encoder": "attention"}, "through CLIP"),
    ({"quality": "like the paper", "clip_vision": None}, None), ({"quality": "like the paper", "style": None}, None),
    ({"quality": "like the paper", "encoder": "direct"}, None), ({"quality": None}, None), ({"encoder": None}, None),
    ({"quality": "best"}, "quality is 'best'; expected one of"), ({"name": "a b"}, "name is 'a b'")])
def test_what_is_missing_is_said_on_run(given, said):
    """None stands for what is connected, as the host hands it in."""
    answer = InSTLearnStyle.validate_inputs(**given)
    assert answer is True if said is None else said in answer


def test_several_paintings_all_count(small, pictures):
    both, one = (learn(small, seen, steps=2, batch_size=2) for seen in (pictures, pictures[:1]))
    assert not torch.equal(both.result[0].vectors["clip_l"], one.result[0].vectors["clip_l"])


def test_a_read_only_models_folder_does_not_lose_the_style(small, pictures, folders):
    (folders / "models").write_text("not a folder")
    text = learn(small, pictures[:1]).ui.as_dict()["text"][0]
    assert f"style_00001.safetensors is saved in {folders / 'output' / 'inst_styles'}, because" in text


def test_what_cannot_be_learned_is_refused_before_any_work(small, pictures, clip_vision):
    model, clip, vae = small
    cases = [
        ({"encoder": "paper"}, "or encoder 'direct', which need none"),
        ({"name": "../x"}, "Expected a file name"),
        ({"name": "a b"}, "cannot carry space"),
        ({"steps": -1}, "steps is -1"),
        ({"image": pictures[0]}, "expected an IMAGE batch"),
        ({"image": pictures[:1] * float("nan")}, "NaN"),
    ]
    for change, message in cases:
        arguments = {"image": pictures[:1], "encoder": "direct", **change}
        with pytest.raises(ValueError, match=message):
            learn(small, arguments.pop("image"), arguments.pop("encoder"), **arguments)
    assert not host.files.style_folders()[0].exists()


def test_what_cannot_be_learned_is_refused_before_anything_is_encoded(small, pictures, clip_vision, monkeypatch):
    model, clip, vae = small
    foreign, text, patched = model.clone(), clip.clone(), model.clone()
    foreign.cached_patcher_init = None
    text.patcher = clip.patcher.clone()
    text.patcher.cached_patcher_init = None
    patched.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    other = Style({"clip_l": torch.ones(3, 768)}, family="SD15")

    def encode(*_, **__):
        raise AssertionError("something was encoded")

    monkeypatch.setattr(vae, "encode", encode)
    monkeypatch.setattr(clip_vision, "encode_image", encode)
    for parts, change, message in [
        ((foreign, clip, vae), {}, "model comes from a loader that cannot make it a second time"),
        ((model, text, vae), {}, "clip comes from a loader that cannot make it a second time"),
        ((patched, clip, vae), {"layers": "late"}, "carries patches of its blocks"),
        ((model, clip, vae), {"continue_from": other}, "cannot be continued by"),
        ((model, clip, vae), {"continue_from": replace(other, layers="late")}, "layers 'late', and layers is 'all'"),
    ]:
        with pytest.raises(ValueError, match=message):
            learn(parts, pictures[:1], "attention", clip_vision=clip_vision, **change)


def test_a_vae_of_another_model_is_refused(small, pictures):
    class Flux:
        patcher = small[2].patcher

        def encode(self, pixels):
            return torch.zeros(len(pixels), 16, 8, 8)

    with pytest.raises(ValueError, match=r"VAE makes latents \(1, 16, 8, 8\); the model takes 4"):
        learn((small[0], small[1], Flux()), pictures[:1])


def test_import_of_an_official_file(small, pictures, clip_vision, golden, ldm):
    """The pickled module's weights, applied to what the released code shows CLIP."""
    weights = golden("inst_attentions").state_dict("embeddings.pt")
    with torch.inference_mode(False):
        official = ldm()
        official.load_state_dict(weights)
        target = host.files.style_folders()[0]
        target.mkdir(parents=True)
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "attention": official}, target / "embeddings.pt")
    assert InSTImportEmbeddings.define_schema().inputs[0].options == ["embeddings.pt"]
    assert InSTImportEmbeddings.validate_inputs("embeddings.pt") is True

    expected = Attentions()
    expected.load_state_dict(weights)
    for encoder in ("paper", "released"):
        style = InSTImportEmbeddings.execute("embeddings.pt", clip_vision, pictures[:1], encoder, 3).result[0]
        embed = host.vision.picture_features(clip_vision, pictures[:1], encoder == "released").image_embed
        generator = torch.Generator().manual_seed(3) if encoder == "released" else None
        torch.testing.assert_close(style.vectors["clip_l"], expected(embed.view(1, 1, -1), generator)[0])


def test_import_without_a_file_says_what_to_do():
    assert InSTImportEmbeddings.define_schema().inputs[0].options == [NO_EMBEDDINGS]
    assert "Copy one into models/embeddings" in InSTImportEmbeddings.validate_inputs(NO_EMBEDDINGS)
