"""Official embeddings.pt files: read exactly, and never run."""
import os
import zipfile

import pytest
import torch
from inst_pack.inst_core.official import OfficialFileError, load_embeddings
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
    assert torch.equal(loaded["net.1.weight"], module.net[1].weight.detach().float())


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_the_file_is_not_run_and_is_named(tmp_path, ldm):
    trap = tmp_path / "ran"
    path = official_file(tmp_path / "evil.pt", ldm(), payload=Evil(trap))
    with pytest.raises(OfficialFileError, match=r"(posix|nt)\.system.*Nothing was run"):
        load_embeddings(path)
    assert not trap.exists()


@pytest.mark.parametrize("innocent", [print, getattr, eval, torch.load, nn.Conv2d])
def test_every_other_name_is_refused(tmp_path, ldm, innocent):
    with pytest.raises(OfficialFileError, match=f"{innocent.__name__}, which an InST file does not need"):
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
    legacy = tmp_path / "legacy.pt"
    torch.save({"attention": {}}, legacy, _use_new_zipfile_serialization=False)
    torch.save({"string_to_param": {}}, tmp_path / "ti.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    cases = {
        official_file(tmp_path / "short.pt", short): "lacks .*attn2.to_q.weight",
        official_file(tmp_path / "wide.pt", wide): r"net.1.weight has shape \(512, 768\)",
        official_file(tmp_path / "nan.pt", nan): "net.1.bias .*not finite",
        text: "not a readable embeddings.pt",
        empty_zip: "not one that torch.save wrote",
        legacy: "not a readable embeddings.pt",
        tmp_path / "ti.pt": "it holds string_to_param; expected string_to_token and attention",
        tmp_path / "list.pt": "it holds list",
    }
    for path, message in cases.items():
        with pytest.raises(OfficialFileError, match=message):
            load_embeddings(path)


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path, ldm):
    module = ldm()
    path = official_file(tmp_path / "a.pt", module)
    small = tmp_path / "small.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(small, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("/data/3"):
                data = data[: len(data) // 2]
            target.writestr(item, data)
    with pytest.raises(OfficialFileError, match="damaged"):
        load_embeddings(small)
