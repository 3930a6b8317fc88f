"""Style files that are dropped on the canvas: names from other machines, and what is no style."""
import pytest
import torch
from inst_pack.inst_core import incoming
from inst_pack.inst_core.style import Style, save_style


def content(folder, value: float = 1.0) -> bytes:
    path = folder / "made.safetensors"
    save_style(Style({"clip_l": torch.full((1, 768), value)}), path)
    return path.read_bytes()


@pytest.mark.parametrize("name, kept", [
    ("dune.safetensors", "dune.safetensors"), ("my dune (2).safetensors", "my dune (2).safetensors"),
    ("星月夜.SAFETENSORS", "星月夜.safetensors"), ("../../up.safetensors", "up.safetensors"),
    ("C:\\styles\\dune.safetensors", "dune.safetensors"), ("a:b?.safetensors", "a_b_.safetensors"),
    (f"{'é' * 300}.safetensors", f"{'é' * 100}.safetensors"),
])
def test_a_name_from_another_machine_becomes_one_of_this_folder(tmp_path, name, kept):
    home = tmp_path / "styles"
    assert incoming.keep(name, content(tmp_path), home, [home]) == kept
    assert [p.name for p in home.iterdir()] == [kept]


def test_a_known_file_is_taken_as_it_is_and_another_one_gets_a_number(tmp_path):
    home, old = tmp_path / "styles", content(tmp_path)
    (home / "painters").mkdir(parents=True)
    (home / "painters" / "dune.safetensors").write_bytes(old)
    assert incoming.keep("dune.safetensors", old, home, [home]) == "painters/dune.safetensors"
    names = [incoming.keep("dune.safetensors", content(tmp_path, value), home, [home]) for value in (2.0, 3.0)]
    assert names == ["dune.safetensors", "dune (2).safetensors"]
    assert (home / "painters" / "dune.safetensors").read_bytes() == old


@pytest.mark.parametrize("name, data, said", [
    ("dune.pt", b"", "no style file"), (".safetensors", b"", "no style file"), (" .safetensors", b"", "is empty"),
    ("dune.safetensors", b"nonsense", "dune.safetensors is not a safetensors file"),
    ("dune.safetensors", b"PK\x03\x04" + bytes(100), "is a pickle"),
])
def test_what_is_no_style_leaves_nothing_behind(tmp_path, name, data, said):
    with pytest.raises(ValueError, match=said):
        incoming.keep(name, data, tmp_path / "styles", [tmp_path / "styles"])
    assert not list((tmp_path / "styles").glob("*")) if (tmp_path / "styles").exists() else True
