"""A pretend accelerator, and ComfyUI made to compute on it (see ``pretend.cpp``).

    INST_DEVICE=pretend python3 tools/dev.py test tests/host/test_nodes.py

INST_VRAM=LOW_VRAM (or NO_VRAM, HIGH_VRAM) is ComfyUI's --lowvram (--novram, --highvram).

What it finds: tensors left on the wrong device; tensors of the wrong precision, because ComfyUI computes in half
precision on it (bfloat16: of the two, the one that is quick on a CPU); what Apple's GPUs refuse: float64, pooling to
other sizes than divisors, operations they lack.  What it cannot find: what kernels of a real GPU do differently.
"""
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import torch

NAME = "pretend"
SOURCE = Path(__file__).with_name("pretend.cpp")
FREE_BYTES = 8 * 2**30
COMPILER = shutil.which("g++")


def build(folder: Path) -> Path:
    """The compiled backend, made unless it is there."""
    root = Path(torch.__file__).parent
    recipe = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode() + sys.version.encode())
    target = folder / f"pretend-{recipe.hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
        subprocess.run([COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", *includes, SOURCE, f"-L{root / 'lib'}",
                        "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}", "-o", partial], check=True)
        os.replace(partial, target)
    return target


class Memory:
    """Of the device: bytes that are taken ``now``, and that were at the ``peak`` since ``start``."""

    def __init__(self, folder: Path):
        self._library = ctypes.CDLL(str(build(folder)))
        for name in ("pretend_now", "pretend_peak"):
            getattr(self._library, name).restype = ctypes.c_size_t
        self._library.pretend_start.argtypes = [ctypes.c_size_t]
        self.limit = 0

    @property
    def now(self) -> int:
        return self._library.pretend_now()

    @property
    def peak(self) -> int:
        return self._library.pretend_peak()

    def start(self, limit: int = 0) -> None:
        """Counts the peak from now on; above ``limit`` bytes memory is out (0 = never)."""
        self.limit = limit
        self._library.pretend_start(limit)


def register(folder: Path) -> torch.device:
    """Makes torch know the device."""
    torch.ops.load_library(build(folder))
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(NAME)
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: None
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device(NAME, 0)


def use(folder: Path) -> None:
    """Denoiser, text encoder, CLIP vision and VAE of ComfyUI on the pretend device; what is unused stays on the CPU."""
    import comfy.model_management as management

    device = register(folder)

    def free(dev=None, torch_free_too=False, torch_total_too=False):
        return (FREE_BYTES, FREE_BYTES) if torch_free_too or torch_total_too else FREE_BYTES

    def on_the_device(device=None, *_, **__):
        return device is None or device.type == NAME

    management.get_torch_device = lambda: device
    management.get_free_memory = management.get_total_memory = free
    state = management.VRAMState[os.environ.get("INST_VRAM", "NORMAL_VRAM")]
    management.vram_state = management.set_vram_to = state
    if state in (management.VRAMState.NORMAL_VRAM, management.VRAMState.HIGH_VRAM):  # else on the CPU, as on GPUs
        management.text_encoder_device = lambda: device
    management.soft_empty_cache = lambda force=False: None
    management.device_supports_non_blocking = lambda device: False
    management.get_offload_stream = lambda device: None
    management.should_use_bf16 = on_the_device
    management.should_use_fp16 = lambda *_, **__: False
    management.supports_fp64 = lambda device=None: not on_the_device(device)
