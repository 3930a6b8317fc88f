"""Official embeddings.pt files: read exactly, and never run."""
import pickle
import zipfile

import numpy as np
import pytest
import torch
from inst_pack.inst_core.official import load_embeddings
from torch import nn


def official_file(path, attention, **more):
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "attention": attention, **more}, path)
    return path


def test_a_pickled_module_gives_its_weights(tmp_path, ldm, golden):
    module = ldm()
    expected = golden("inst_attentions").state_dict("embeddings.pt")
    module.load_state_dict(expected)
    loaded = load_embeddings(official_file(tmp_path / "embeddings.pt", module))
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[k], v) for k, v in expected.items())


def test_half_precision_and_a_plain_state_dict_are_read_too(tmp_path, ldm):
    module = ldm().half()
    loaded = load_embeddings(official_file(tmp_path / "a.pt", module.state_dict()))
    assert torch.equal(loaded["net.1.weight"], module.net[1].weight.detach())


@pytest.mark.parametrize("innocent", [print, getattr, eval, torch.load, nn.Conv2d, bytearray, torch.FloatTensor,
                                      torch._utils._rebuild_sparse_tensor])
def test_every_other_name_is_refused(tmp_path, ldm, innocent):
    """Those too that torch itself would let pass: with them a few bytes could ask for any amount of memory."""
    with pytest.raises(ValueError, match=f"{innocent.__name__}, which an InST file does not need"):
        load_embeddings(official_file(tmp_path / "a.pt", ldm(), extra=innocent))


def test_wrong_contents_are_named(tmp_path, ldm):
    short = ldm()
    del short.attn2.to_q
    wide = ldm()
    wide.net[1] = nn.Linear(768, 512)
    nan = ldm()
    nan.net[1].bias.data[0] = float("nan")
    text = tmp_path / "text.pt"
    text.write_text("hello")
    empty_zip = tmp_path / "zip.pt"
    with zipfile.ZipFile(empty_zip, "w") as archive:
        archive.writestr("readme", "x")
    torch.save({"string_to_param": {}}, tmp_path / "ti.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"lora_unet.up.weight": torch.ones(2, 2)}, tmp_path / "lora.pt")
    cases = {
        official_file(tmp_path / "short.pt", short): "lacks .*attn2.to_q.weight",
        official_file(tmp_path / "wide.pt", wide): r"net.1.weight is torch.float32 \(512, 768\)",
        official_file(tmp_path / "nan.pt", nan): "net.1.bias .*not finite",
        text: "not in torch's zip format",
        empty_zip: "not one that torch.save wrote",
        tmp_path / "ti.pt": "it holds string_to_param; expected string_to_token and attention",
        official_file(tmp_path / "ints.pt", {k: v.long() for k, v in ldm().state_dict().items()}):
            r"is torch.int64 .*expected floating point",
        official_file(tmp_path / "text.pt2", {k: "x" for k in ldm().state_dict()}): "is str; expected floating point",
        official_file(tmp_path / "state.pt", {}): "lacks .*attn1",
        tmp_path / "list.pt": "it holds list; .*Choose the embeddings.pt",
        tmp_path / "lora.pt": "it holds lora_unet.up.weight; .*attention. Choose the embeddings.pt",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            load_embeddings(path)


def other_tools_files():
    vectors = torch.ones(2, 768)
    plain = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "cat", "step": 100}
    ldm = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": vectors})}
    return {
        "a1111": plain,
        "ldm": ldm,
        "sd-concepts-library": {"<cat>": vectors[0]},
        "numpy's int": {**plain, "step": np.int64(100)},
        "numpy's float": {**plain, "loss": np.float32(0.5), "rate": np.float64(0.5), "on": np.bool_(True)},
    }


@pytest.mark.parametrize("kind", other_tools_files())
def test_textual_inversions_of_other_tools_get_a_sentence_that_says_what_works(tmp_path, kind):
    torch.save(other_tools_files()[kind], tmp_path / "cat.pt")
    with pytest.raises(ValueError, match=r"^cat.pt was not imported: it holds .*; expected string_to_token and "
                                         r"attention\. It is a textual inversion of another tool: .* write embedding:"):
        load_embeddings(tmp_path / "cat.pt")


@pytest.mark.parametrize("old", [True, False], ids=["torch's old format", "a pickle"])
def test_other_formats_get_it_too(tmp_path, old):
    path = tmp_path / "cat.pt"
    if old:
        torch.save(other_tools_files()["a1111"], path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="cat.pt was not imported.*torch's zip format.*write embedding: and its name"):
        load_embeddings(path)


def test_numpys_numbers_beside_the_module_do_not_matter(tmp_path, ldm):
    assert load_embeddings(official_file(tmp_path / "a.pt", ldm(), step=np.int64(5), loss=np.float64(0.5)))


def repacked(source, target, edit, kind=zipfile.ZIP_STORED):
    """A copy of a torch file, every record changed by ``edit(name, data)``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for item in old.infolist():
            new.writestr(item.filename, edit(item.filename, old.read(item)))
    return target


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path, ldm):
    path = official_file(tmp_path / "a.pt", ldm())
    small = repacked(path, tmp_path / "small.pt", lambda name, data: data[:9] if "/data/3" in name else data)
    with pytest.raises(ValueError, match="small.pt was not imported: it is damaged"):
        load_embeddings(small)


def test_what_is_larger_than_the_file_is_refused_before_it_is_there(tmp_path, ldm):
    """Tensors that repeat one number (stride 0), compressed zeros: a small file that would become a large one."""
    state = {k: torch.zeros(1).as_strided(v.shape, [0] * v.ndim) for k, v in ldm().state_dict().items()}
    repeated = official_file(tmp_path / "repeated.pt", state)
    vast = official_file(tmp_path / "vast.pt", {**state, "net.1.bias": torch.zeros(1).expand(2**40)})
    beside = official_file(tmp_path / "beside.pt", ldm(), more=torch.zeros(1).expand(2**40))
    zeros = repacked(official_file(tmp_path / "a.pt", ldm(), more=torch.zeros(2**20)), tmp_path / "zeros.pt",
                     lambda name, data: bytes(len(data)) if "/data/" in name else data, zipfile.ZIP_DEFLATED)
    assert repeated.stat().st_size < 20_000
    for path, message in ((repeated, "takes more numbers than are stored"), (vast, "takes more|expected floating"),
                          (zeros, "unpack to more than the file holds")):
        with pytest.raises(ValueError, match=f"{path.name} was not imported: .*{message}"):
            load_embeddings(path)
    assert load_embeddings(beside)  # never multiplied out


def test_what_others_allow_is_not_changed(tmp_path, ldm):
    before = set(torch.serialization.get_safe_globals())
    load_embeddings(official_file(tmp_path / "a.pt", ldm()))
    assert set(torch.serialization.get_safe_globals()) == before
