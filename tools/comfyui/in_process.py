"""ComfyUI and the pack's core in this process, for tools that make models, measure or train."""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / ".dev" / "home" / "models"
sys.path.append(str(ROOT / "tests" / "models"))  # small models for tests and benchmarks


def use_comfyui(on_cpu: bool, comfyui: Path | None = None) -> None:
    """Makes ``comfy`` and ``inst_core`` importable: the ComfyUI in the folder given, in COMFYUI_PATH, or what
    ``tools/dev.py setup`` fetched.

    Call it before anything of ComfyUI is imported.  ComfyUI's folder comes first, because its ``nodes`` is not ours.
    """
    comfyui = comfyui or Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "ComfyUI")
    if not (comfyui / "main.py").is_file():
        sys.exit(f"There is no ComfyUI in {comfyui}. Run 'python3 tools/dev.py setup', or set COMFYUI_PATH.")
    sys.path.insert(0, str(comfyui))
    sys.path.append(str(ROOT))
    from comfy.cli_args import args

    args.cpu = on_cpu
