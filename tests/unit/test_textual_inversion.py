"""Files of other tools: read as ComfyUI's own embedding: reads them, or refused with what works."""
import pytest
import torch
from inst_pack.inst_core.style import load_style
from safetensors.torch import save_file

L, G, H = 768, 1280, 1024


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def load(folder, tensors):
    save_file(tensors, folder / "ti.safetensors")
    return load_style(folder / "ti.safetensors").vectors


@pytest.mark.parametrize("key", ["emb_params", "<my-cat>", "*", "string_to_param.*", "text_encoders_0",
                                 "bundle_emb.cat.string_to_param.*"])
@pytest.mark.parametrize("width, encoder", [(L, "clip_l"), (H, "clip_h"), (G, "clip_g"), (4096, "t5xxl")])
def test_one_matrix_belongs_to_the_text_encoder_of_its_width(tmp_path, key, width, encoder):
    vectors = load(tmp_path, {key: rows(3, width)})
    assert vectors.keys() == {encoder} and torch.equal(vectors[encoder], rows(3, width))


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"), ("a", "b"),
                                  ("bundle_emb.cat.clip_l", "bundle_emb.cat.clip_g")])
def test_two_matrices_for_two_text_encoders(tmp_path, keys):
    vectors = load(tmp_path, {keys[1]: rows(2, G), keys[0]: rows(2, L)})
    assert vectors.keys() == {"clip_l", "clip_g"}
    assert torch.equal(vectors["clip_l"], rows(2, L)) and torch.equal(vectors["clip_g"], rows(2, G))


def test_embeddings_in_a_lora_follow_each_other(tmp_path):
    vectors = load(tmp_path, {"bundle_emb.a.clip_l": rows(2, L), "bundle_emb.b.clip_l": rows(1, L, 1),
                              "lora_unet_x.lora_down.weight": rows(4, 320)})
    assert torch.equal(vectors["clip_l"], torch.cat([rows(2, L), rows(1, L, 1)]))


@pytest.mark.parametrize("key", ["emb_params", "clip_l", "bundle_emb.cat.clip_l"])
def test_a_vector_is_one_token(tmp_path, key):
    assert torch.equal(load(tmp_path, {key: rows(1, L)[0]})["clip_l"], rows(1, L))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("key", ["clip_l", "emb_params", "bundle_emb.cat.clip_l"])
def test_every_floating_format_is_read_exactly(tmp_path, kind, key):
    stored = rows(2, L).to(kind)
    assert torch.equal(load(tmp_path, {key: stored})["clip_l"], stored.float())


def test_numbers_beside_the_matrix_do_not_matter(tmp_path):
    assert load(tmp_path, {"emb_params": rows(2, L), "step": torch.tensor(5.0), "string_to_token": torch.tensor([265])})


@pytest.mark.parametrize("tensors, message", [
    ({"lora_up.weight": torch.ones(L, 4), "lora_down.weight": torch.ones(4, L)}, r"lora_down.weight \(4, 768\)"),
    ({"a": torch.ones(2, L), "b": torch.ones(2, L)}, r"a \(2, 768\), b \(2, 768\)"),
    ({"a": torch.ones(2, 700)}, r"a \(2, 700\)\. Expected the vectors of one text encoder"),
    ({"a": torch.ones(2, 2, L)}, r"a \(2, 2, 768\)"),
    ({"a": torch.ones(2, L).long()}, r"a \(2, 768\)"),
    ({f"{i}.weight": torch.ones(2, 2) for i in range(9)}, r"\d.weight \(2, 2\), \.\.\.\. Expected"),
    ({}, "it holds nothing"),
    ({"emb_params": torch.ones(80, L)}, "clip_l has 80 tokens; a style has at most 75"),
    ({"text_encoders_0": torch.ones(2, L), "text_encoders_1": torch.ones(3, G)}, "disagree on the number of tokens"),
], ids=lambda value: value[:20] if isinstance(value, str) else "")
def test_other_files_are_refused(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=rf"ti\.safetensors.*{message}"):
        load(tmp_path, tensors)
