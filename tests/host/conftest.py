"""ComfyUI in process, with the small checkpoints that ``tests/models/small_models.py`` makes.

``tools/dev.py test`` sets ``INST_COMFYUI`` (a ComfyUI checkout) and ``INST_MODELS`` (a models folder).
``INST_DEVICE`` is where ComfyUI computes: "cpu" unless it is set, "gpu" for its own choice, or "pretend" (see
``tests/device``).
"""
import math
import os
import sys
from pathlib import Path

import pytest
import torch

COMFYUI, MODELS = os.environ.get("INST_COMFYUI"), os.environ.get("INST_MODELS")
DEVICE = os.environ.get("INST_DEVICE", "cpu")

if COMFYUI and MODELS:
    sys.path.insert(0, COMFYUI)
    import utils.extra_config  # noqa: F401  as main.py: older hosts hide it once they have imported their nodes
    from comfy.cli_args import args

    args.cpu = DEVICE != "gpu"
    args.disable_metadata = False
    if DEVICE == "pretend":
        sys.path.append(str(Path(__file__).resolve().parents[1] / "device"))
        import pretend

        pretend.use(Path(MODELS).parent)


class NeedsComfyUI(pytest.Module):
    """Stands for a test file that cannot even be imported here."""

    def collect(self):
        pytest.skip("needs ComfyUI: run 'python3 tools/dev.py test', or set INST_COMFYUI and INST_MODELS",
                    allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if not (COMFYUI and MODELS):
        return NeedsComfyUI.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def inference_mode(request):
    """Nodes run as ComfyUI runs them."""
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def folders(tmp_path_factory, monkeypatch):
    """Models are read from INST_MODELS; everything written goes to a fresh folder."""
    import folder_paths
    from inst_pack.inst_core import host

    home = tmp_path_factory.mktemp("comfy")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths",
                        {k: ([*v[0]], set(v[1])) for k, v in folder_paths.folder_names_and_paths.items()})
    monkeypatch.setattr(folder_paths, "models_dir", str(home / "models"))
    monkeypatch.setattr(folder_paths, "output_directory", str(home / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(home / "temp"))
    for kind in ("checkpoints", "clip_vision", "loras", "controlnet"):
        folder_paths.add_model_folder_path(kind, str(Path(MODELS, kind)))
    folder_paths.filename_list_cache.clear()
    host.files.register_folders()
    return home


def load_checkpoint(name: str | Path = "inst-small.safetensors"):
    import comfy.sd
    import folder_paths

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(
            str(Path(MODELS, "checkpoints", name)), output_vae=True, output_clip=True,
            te_model_options={"clip_l_model_config": {"num_hidden_layers": 4}},
            embedding_directory=folder_paths.get_folder_paths("embeddings"))[:3]


@pytest.fixture(scope="session")
def open_checkpoint():
    """(MODEL, CLIP, VAE) of a small checkpoint, as stock Load Checkpoint returns them, but for eight of the text
    encoder's twelve layers: they would take most of the tests' time."""
    return load_checkpoint


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint()


@pytest.fixture(scope="session")
def clip_vision():
    """A CLIP_VISION of two thin layers, with the widths of ViT-L/14."""
    from small_vit import make

    with torch.inference_mode():
        return make()[1]


@pytest.fixture()
def lpips_file(folders) -> dict:
    """lpips-alex.safetensors from a seed, in a subfolder; its tensors."""
    from inst_pack.inst_core.metrics import alexnet, lpips
    from inst_pack.nodes.compare import LPIPS_FILE
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(s, generator=generator) / math.prod(s[1:]) ** 0.5
               for k, s in (alexnet.shapes() | lpips.HEADS).items()}
    weights |= {k: weights[k].abs() for k in lpips.HEADS}  # as learned ones are
    path = folders / "models" / "style_transfer" / "metrics" / LPIPS_FILE
    path.parent.mkdir(parents=True)
    save_file(weights, path)
    return weights


@pytest.fixture(scope="session")
def rounding():
    """Of a MODEL: relative error of one number as it computes it, in float32 on a CPU, in half precision elsewhere."""
    return lambda model: torch.finfo(model.model.get_dtype_inference()).eps


@pytest.fixture()
def small(loaded, folders):
    """The same, with the CLIP reading embeddings from this test's folders."""
    import folder_paths

    model, clip, vae = loaded
    clip = clip.clone()
    clip.tokenizer.clip_l.embedding_directory = folder_paths.get_folder_paths("embeddings")
    return model, clip, vae


@pytest.fixture(scope="session")
def pictures():
    """Two smooth test pictures as an IMAGE batch (2, 96, 128, 3)."""
    with torch.inference_mode():
        y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
        waves = [torch.stack([(6 * x + k).sin(), (9 * y * x + k).cos(), (4 * y - k).sin()], -1) for k in (0.0, 2.0)]
        return torch.stack(waves) / 2 + 0.5
