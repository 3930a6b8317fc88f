"""Nothing is learned twice, and nothing is taken for what it is not."""
import contextlib
import dataclasses
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.cli_args import args
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from graph import learn
from inst_pack.inst_core import host, library
from inst_pack.inst_core.learning import Check, Learned
from safetensors.torch import save_file

import nodes as host_nodes


@pytest.fixture()
def learned(monkeypatch):
    """A list that grows by one whenever the loop is entered, which is passed over here: it is not what is tested."""
    runs = []

    def learn_style(session, module, *_):
        runs.append(module)
        checks = [Check(0, 0.0, 0.5), Check(1, 1.0, 0.25)]
        vectors = {k: v.detach().clone() for k, v in module.vectors.items()}
        return Learned(vectors, module.state_dict(), [0.5], checks, 0.25, "finished", "half as far away")

    monkeypatch.setattr(host.learning, "learn_style", learn_style)
    monkeypatch.setattr(host.learning, "training_session", lambda *_: contextlib.nullcontext())
    return runs


@pytest.fixture()
def key_of(monkeypatch):
    """The key that the node looks for; nothing is learned."""
    class Looked(Exception):
        pass

    def look(key, folders):
        raise Looked(key)

    def key_of(small, image, **settings):
        monkeypatch.setattr(library, "find", look)
        with pytest.raises(Looked) as looked:
            learn(small, image, **settings)
        return str(looked.value)

    return key_of


def test_a_b_a_a_new_name_and_a_restart_learn_nothing_twice(small, pictures, learned, open_checkpoint):
    first, _, third = (learn(small, image, name="wave") for image in (pictures[:1], pictures[1:], pictures[:1]))
    assert len(learned) == 2
    assert torch.equal(first.result[0].vectors["clip_l"], third.result[0].vectors["clip_l"])
    assert first.result[1]["loss"] == third.result[1]["loss"] == [0.5, 0.25]
    text = third.ui.as_dict()["text"][0]
    assert text.startswith("wave_00001.safetensors is loaded, learned on 20") and "learn_again" in text
    learn(small, pictures[:1], name="sea")
    learn(open_checkpoint(), pictures[:1])
    assert len(learned) == 2
    again = learn(small, pictures[:1], learn_again=True, name="wave")
    assert len(learned) == 3 and "wave_00003.safetensors is saved" in again.ui.as_dict()["text"][0]


def test_it_is_found_without_metadata_too(small, pictures, learned, monkeypatch):
    monkeypatch.setattr(args, "disable_metadata", True)
    results = [learn(small, pictures[:1]) for _ in range(2)]
    assert len(learned) == 1
    assert results[0].result[1]["loss"] == results[1].result[1]["loss"] == [0.5, 0.25]


def test_a_style_goes_on_from_another_once(small, pictures, learned):
    first = learn(small, pictures[:1]).result[0]
    second = learn(small, pictures[:1], continue_from=first).result[0]
    learn(small, pictures[:1], continue_from=second)
    assert len(learned) == 2  # the second style has the vectors of the first, since nothing was learned in between
    moved = dataclasses.replace(first, vectors={k: v + 1 for k, v in first.vectors.items()})
    learn(small, pictures[:1], continue_from=moved)
    assert len(learned) == 3


def test_every_setting_that_matters_tells_styles_apart(small, pictures, key_of, clip_vision):
    corner = torch.zeros(1, 96, 128)
    corner[:, :20, :20] = 1
    changes = [{}, {"prompt": "a hill, *"}, {"seed": 1}, {"steps": 3}, {"learning_rate": 0.01}, {"tokens": 1},
               {"layers": "late"}, {"strongest": 0.5}, {"start": "oil"}, {"resolution": 128}, {"batch_size": 2},
               {"encoder": "attention", "clip_vision": clip_vision}, {"max_seconds": 50.0},
               {"adapter_rank": 2}, {"adapter_rank": 3}, {"style_mask": corner}, {"style_mask": corner.flip(2)},
               {"content": "sunflowers"}, {"content": "a vase"},
               {"stages": 2}, {"stages": 3}]
    keys = [key_of(small, pictures[:1], **change) for change in changes]
    assert len(set(keys)) == len(keys)
    assert key_of(small, pictures[:1], name="sea", clip_vision=clip_vision) == keys[0]
    assert key_of(small, pictures[1:]) != keys[0]
    # Load Image's mask of a picture without transparency; and what a mask leaves out does not matter.
    assert key_of(small, pictures[:1], style_mask=torch.zeros(1, 64, 64), content=" ") == keys[0]
    stained = torch.where(corner.bool().unsqueeze(-1), 0.0, pictures[:1])
    assert key_of(small, stained, style_mask=corner) == keys[15]


def with_lora(model, clip, strength, seed=0):
    """A stock LoRA on one layer of each."""
    generator = torch.Generator().manual_seed(seed)
    keys = {"model": "lora_unet_mid_block_attentions_0_proj_in", "clip": "lora_te_text_model_encoder_layers_0_mlp_fc1"}
    shapes = {"model": model.model.diffusion_model.middle_block[1].proj_in.weight.shape,
              "clip": clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1.weight.shape}
    lora = {}
    for part, key in keys.items():
        out, into = shapes[part][:2]
        extra = (1,) * (len(shapes[part]) - 2)
        lora |= {f"{key}.lora_up.weight": torch.randn(out, 2, *extra, generator=generator),
                 f"{key}.lora_down.weight": torch.randn(2, into, *extra, generator=generator)}
    patched = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
    assert patched[0].patches and patched[1].patcher.patches
    return patched


def test_models_are_told_apart_by_what_learning_sees(small, open_checkpoint):
    model, clip, vae = small
    again = open_checkpoint()
    one, two, other = with_lora(model, clip, 0.5), with_lora(model, clip, 0.6), with_lora(model, clip, 0.5, seed=1)
    skipped = host_nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0]
    velocity = ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    known = [host.identity.identify(*models) for models in [
        (model, clip, vae), (one[0], clip, vae), (model, one[1], vae), (*one, vae), (*two, vae), (*other, vae),
        (model, skipped, vae), (velocity, clip, vae)]]
    assert len(set(known)) == len(known)
    assert known[0] == host.identity.identify(*again)
    assert known[3] == host.identity.identify(*with_lora(again[0], again[1], 0.5), again[2])


def test_being_loaded_and_patched_at_the_moment_changes_nothing(small):
    model, clip, vae = small
    patched = with_lora(model, clip, 0.5)
    known = [host.identity.identify(model, clip, vae), host.identity.identify(*patched, vae)]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    positive = host_nodes.CLIPTextEncode().encode(patched[1], "a hill")[0]
    host_nodes.common_ksampler(patched[0], 0, 1, 1.0, "euler", "normal", positive, positive, latent)
    assert [host.identity.identify(model, clip, vae), host.identity.identify(*patched, vae)] == known


def test_an_embedding_that_the_prompt_names_belongs_to_it(small):
    folder = host.files.style_folders()[0]
    folder.mkdir(parents=True)
    known = []
    for value in (1.0, 2.0):
        save_file({"clip_l": torch.full((1, 768), value)}, folder / "mood.safetensors")
        known.append(host.identity.identify(*small, texts=["*, embedding:mood"]))
    assert known[0] != known[1] and "embeddings" in folder_paths.folder_names_and_paths


def test_clip_vision_counts_where_it_is_used(small, clip_vision):
    assert host.identity.identify(*small, clip_vision) != host.identity.identify(*small)


def test_a_model_is_the_same_under_another_name_and_another_under_its_own(small, open_checkpoint, tmp_path):
    """The checkpoint's contents count, not where it lies or when it was written."""
    stored = Path(small[0].cached_patcher_init[1][0])
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(stored.read_bytes())
    assert host.identity.identify(*open_checkpoint(copy)) == host.identity.identify(*small)
    tensors = comfy.utils.load_torch_file(str(stored))
    save_file({k: v.clone() * (1.01 if "diffusion_model" in k else 1) for k, v in tensors.items()}, copy)
    assert host.identity.identify(*open_checkpoint(copy)) != host.identity.identify(*small)


def test_models_of_other_loaders_are_known_by_their_weights(small, monkeypatch):
    model, clip, vae = small
    for patcher in (model, clip.patcher, vae.patcher):
        monkeypatch.setattr(patcher, "cached_patcher_init", None)
    known = host.identity.identify(*small)
    patched = with_lora(model, clip, 0.5)
    with_one = host.identity.identify(*patched, vae)
    comfy.model_management.load_models_gpu([patched[0], patched[1].patcher], force_patch_weights=True)
    assert model.backup and (host.identity.identify(*small), host.identity.identify(*patched, vae)) == (known, with_one)
    assert known != with_one
