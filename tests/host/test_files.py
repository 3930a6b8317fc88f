"""Files and names beside ComfyUI's own reader of embeddings."""
from pathlib import Path

import comfyui_version
import folder_paths
import pytest
import torch
from comfy.sd1_clip import load_embed
from inst_pack.inst_core import host, saving
from inst_pack.inst_core.style import Style, load_style, save_style
from inst_pack.nodes.compare import InSTMetrics
from inst_pack.nodes.style import InSTImportEmbeddings, InSTSaveStyle
from inst_pack.nodes.styleshot import InSTLoadStyleShot
from inst_pack.nodes.transfer import InSTGatysStyleTransfer, InSTLoadStyleTransferModel
from safetensors.torch import save_file


def rows(count: int, width: int = 768, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "emb_params": {"emb_params": rows(3)},
    "diffusers": {"<cat>": rows(2)},
    "sd2": {"emb_params": rows(2, 1024)},
    "sdxl": {"clip_g": rows(2, 1280), "clip_l": rows(2)},
    "bundle": {"bundle_emb.cat.string_to_param.*": rows(2), "lora_te.down.weight": rows(4, 64)},
    "bundle of two": {"bundle_emb.a.clip_l": rows(2), "bundle_emb.b.clip_l": rows(1, 768, 1)},
    "bundle for sdxl": {"bundle_emb.a.clip_l": rows(2), "bundle_emb.a.clip_g": rows(2, 1280)},
    "text_encoders_0": {"text_encoders_0": rows(2)},
    "string_to_param": {"string_to_param.*": rows(2)},
    "one vector": {"emb_params": rows(1)[0]},
    "bf16": {"clip_l": rows(2).bfloat16()},
    "fp8": {"emb_params": rows(2).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_embeddings_of_other_tools_are_read_as_the_host_reads_them(folders, layout):
    path = host.files.style_folders()[0] / "cat.safetensors"
    path.parent.mkdir(parents=True)
    save_file(LAYOUTS[layout], path)
    vectors = load_style(path).vectors
    assert vectors
    for key, found in vectors.items():
        stock = load_embed("cat", folder_paths.get_folder_paths("embeddings"), found.shape[1], key)
        assert torch.equal(found, stock.float().reshape(-1, found.shape[1]))


@pytest.mark.parametrize("key", sorted({key for family in host.families.FAMILIES for key in family.text}))
def test_a_matrix_under_a_text_encoders_own_name_is_that_ones(folders, key):
    """Also where several are as wide, and after a tool dropped the header of a style: stock prompts go by the name."""
    path = host.files.style_folders()[0] / "cat.safetensors"
    path.parent.mkdir(parents=True)
    save_file({key: rows(2, 4096), "inst.encoder.x": rows(1)}, path)
    assert load_style(path).vectors.keys() == {key}


def vectors_in(clip, prompt: str) -> list[float]:
    """Weights of the embedding's vectors in a prompt; none where it is not found."""
    return [weight for window in clip.tokenize(prompt)["l"] for token, weight in window if torch.is_tensor(token)]


def save_unchecked(monkeypatch, name):
    """The file as it was before names were checked."""
    monkeypatch.setattr(saving, "check_name", lambda name: name)
    saving.save_new(Style({"clip_l": rows(2)}), name, host.files.style_folders(), True)


@pytest.mark.parametrize("name", ["wave", "painters/monet", "deep/er/monet", "星月夜", "v1.2", "1889_irises", "inf",
                                  "شب\u200cپرستاره", "it's", "a-b_c", "Ünal", "x" * 200])
def test_every_name_that_passes_can_be_written_in_a_prompt(small, name):
    said = InSTSaveStyle.execute(Style({"clip_l": rows(2)}), name).ui.as_dict()["text"][0]
    written = said.split("in any prompt it is ")[1]
    assert written == f"embedding:{name}_00001"
    assert vectors_in(small[1], f"a hill {written}, red") == [1, 1]
    assert vectors_in(small[1], f"({written})") == pytest.approx([1.1, 1.1])
    assert vectors_in(small[1], f"a ({written}:1.3)") == [1.3, 1.3]


CARRIED_ONCE, OLDER = {"style[v2]", "a<b"}, "0.24."


@pytest.mark.parametrize("name", ["Monet_(1872)", "style(1)", "style[v2]", "two words", "a\u3000b", "1889", "1e3",
                                  "1.5", "٣", "-5", "a<b"])
def test_every_name_that_is_refused_could_not(small, monkeypatch, name):
    with pytest.raises(ValueError, match="that a prompt can carry"):
        InSTSaveStyle.execute(Style({"clip_l": rows(2)}), name)
    assert InSTSaveStyle.validate_inputs(name).startswith("name is ")
    save_unchecked(monkeypatch, name)
    read = [vectors_in(small[1], prompt.format(f"embedding:{name}_00001")) for prompt in ("a {}", "({})", "({}:1.3)")]
    if name in CARRIED_ONCE and comfyui_version.__version__.startswith(OLDER):
        pytest.skip("prompts of this ComfyUI carry it; files travel to newer ones")
    assert [] in read


def test_a_new_style_never_hides_behind_another(small, tmp_path):
    """A name in any folder of the loader or of prompts is taken: what is loaded is what was just saved."""
    folder_paths.add_model_folder_path("inst_styles", str(tmp_path / "yaml"))
    folder_paths.add_model_folder_path("embeddings", str(tmp_path / "embeddings"))
    places = [*host.files.style_folders()[:2], tmp_path / "yaml", tmp_path / "embeddings" / "deep"]
    for number, place in enumerate(places, 1):
        save_style(Style({"clip_l": rows(1)}), place / f"Style_{number:05}.safetensors")
    InSTSaveStyle.execute(Style({"clip_l": rows(1, 768, 9)}), "style")
    folder_paths.filename_list_cache.clear()
    assert torch.equal(load_style(host.files.style_path("style_00005.safetensors")).vectors["clip_l"], rows(1, 768, 9))
    stock = load_embed("style_00005", folder_paths.get_folder_paths("embeddings"), 768, "clip_l")
    assert torch.equal(stock, rows(1, 768, 9))


def test_styles_in_folders_are_listed_and_read(small):
    InSTSaveStyle.execute(Style({"clip_l": rows(1)}), "painters/monet")
    folder_paths.filename_list_cache.clear()
    names = {name.replace("\\", "/"): name for name in host.files.style_files()}
    name = names["painters/monet_00001.safetensors"]
    assert load_style(host.files.style_path(name)).tokens == 1


def weight_file(name, value):
    path = Path(folder_paths.models_dir, host.files.TRANSFER_FOLDER, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"x": torch.full((3,), value)}, path)
    return path


@pytest.mark.parametrize("node, inputs", [
    (InSTLoadStyleTransferModel, {"file_1": "other.pth", "file_3": "a.pth"}),
    (InSTGatysStyleTransfer, {"vgg_name": "a.pth", "steps": 5, "size": 64}),
    (InSTLoadStyleShot, {"encoder": "other.pth", "adapter": "a.pth"}),
    (InSTLoadStyleShot, {"encoder": "other.pth", "adapter": "other.pth", "controlnet": "a.pth"}),
    (InSTMetrics, {"csd": "a.pth", "size": 64}), (InSTMetrics, {"vgg19": "a.pth"}),
    (InSTMetrics, {"art_inception": "a.pth", "vgg19": None}),
    (InSTGatysStyleTransfer, {"vgg_name": None}), (InSTLoadStyleShot, {"encoder": "other.pth", "adapter": None}),
    (InSTLoadStyleTransferModel, {"file_1": "other.pth", "method": None}),
], ids=lambda value: value.__name__ if isinstance(value, type) else "")
def test_a_file_that_is_replaced_under_its_name_is_read_again(node, inputs):
    """By the host's cache, which asks ``fingerprint_inputs`` with the widgets' values; None where a node says it."""
    weight_file("other.pth", 0.0)
    weight_file("a.pth", 1.0)
    before = node.fingerprint_inputs(**inputs)
    assert node.fingerprint_inputs(**inputs) == before
    weight_file("a.pth", 2.0)
    assert node.fingerprint_inputs(**inputs) != before


def test_an_embeddings_pt_that_is_trained_again_is_imported_again(ldm):
    """Report of a training that writes the same name again."""
    path = host.files.style_folders()[0] / "embeddings.pt"
    path.parent.mkdir(parents=True)
    inputs = {"embeddings_name": "embeddings.pt", "encoder": "released", "seed": 0}
    known = []
    for _ in range(2):
        with torch.inference_mode(False):
            torch.save({"string_to_token": {}, "attention": ldm()}, path)
        known.append(InSTImportEmbeddings.fingerprint_inputs(**inputs))
    assert known[0] != known[1] == InSTImportEmbeddings.fingerprint_inputs(**inputs)
    assert "not in the folder 'embeddings'" in InSTImportEmbeddings.validate_inputs("gone.pt")
