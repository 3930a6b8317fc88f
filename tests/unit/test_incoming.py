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
    ("dune.safetensors", "dune.safetensors"), ("my dune (2).safetensors", "my_dune_2.safetensors"),
    ("星月夜.SAFETENSORS", "星月夜.safetensors"), ("../../up.safetensors", "up.safetensors"),
    ("C:\\styles\\dune.safetensors", "dune.safetensors"), ("a:b?.safetensors", "a_b.safetensors"),
    ("1889.safetensors", "style_1889.safetensors"), ("CON.safetensors", "CON_.safetensors"),
    (f"{'é' * 300}.safetensors", f"{'é' * 100}.safetensors"),
])
def test_a_name_from_another_machine_becomes_one_of_this_folder(tmp_path, name, kept):
    home = tmp_path / "styles"
    assert incoming.keep(name, content(tmp_path), [home], [home]) == kept
    assert [p.name for p in home.iterdir()] == [kept]


def test_a_known_file_is_taken_as_it_is_and_another_one_gets_a_number(tmp_path):
    """Also where the name is in another folder, in which lists or prompts would go on finding the old one."""
    home, other, embeddings = (tmp_path / name for name in ("styles", "output", "embeddings"))
    old = content(tmp_path)
    for path in (home / "painters" / "my dune.safetensors", other / "Sea.safetensors", embeddings / "sky.pt"):
        path.parent.mkdir(parents=True)
        path.write_bytes(old)

    def keep(name: str, data: bytes) -> str:
        return incoming.keep(name, data, [home], [other, home], [embeddings])

    assert keep("my dune.safetensors", old) == "painters/my dune.safetensors"
    another, third = content(tmp_path, 2.0), content(tmp_path, 3.0)
    assert [keep("my dune.safetensors", data) for data in (another, third)] == ["my_dune.safetensors",
                                                                               "my_dune_2.safetensors"]
    assert keep("sea.safetensors", another) == "sea_2.safetensors"
    assert keep("sky.safetensors", another) == "sky_2.safetensors"
    assert (home / "painters" / "my dune.safetensors").read_bytes() == old


def test_a_folder_that_is_gone_gives_way_to_the_next(tmp_path):
    gone, home = tmp_path / "styles", tmp_path / "output"
    gone.symlink_to(tmp_path / "unplugged")
    assert incoming.keep("dune.safetensors", content(tmp_path), [gone, home], [gone, home]) == "dune.safetensors"
    with pytest.raises(ValueError, match="dune.safetensors could not be kept: .*styles: it is a file, or a link"):
        incoming.keep("dune.safetensors", content(tmp_path, 2.0), [gone], [gone, home])


@pytest.mark.parametrize("name, data, said", [
    ("dune.pt", b"", "no style file"), (".safetensors", b"", "no style file"), (" .safetensors", b"", "is empty"),
    ("dune.safetensors", b"nonsense", "dune.safetensors is not a safetensors file"),
    ("dune.safetensors", b"PK\x03\x04" + bytes(100), "is a pickle"),
])
def test_what_is_no_style_leaves_nothing_behind(tmp_path, name, data, said):
    with pytest.raises(ValueError, match=said):
        incoming.keep(name, data, [tmp_path / "styles"], [tmp_path / "styles"])
    assert not list((tmp_path / "styles").glob("*")) if (tmp_path / "styles").exists() else True
