"""Folders and files, the host's way."""
import contextlib
import shutil
from pathlib import Path

import folder_paths
from comfy.cli_args import args

from .. import state_dicts

STYLE_FOLDER = "inst_styles"
GUESSER_FOLDER = "inst_encoders"  # of encoders that guess styles
TRANSFER_FOLDER = "style_transfer"
SHIPPED_STYLES = Path(__file__).resolve().parents[2] / "styles"
SHIPPED_ENCODERS = SHIPPED_STYLES.with_name(GUESSER_FOLDER)
SAMPLES = SHIPPED_STYLES.with_name("samples")
FOR_THE_DEMO = "inst-demo"  # folder in SHIPPED_STYLES: of the checkpoint that they are for
STYLE_EXTENSIONS = {".safetensors"}
WEIGHT_EXTENSIONS = {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}


def _register(folder: str, paths: list[Path], extensions: set[str]) -> None:
    """Adds paths behind those that extra_model_paths.yaml may have brought, and fixes the extensions."""
    for path in paths:
        folder_paths.add_model_folder_path(folder, str(path))
    known, _ = folder_paths.folder_names_and_paths[folder]
    folder_paths.folder_names_and_paths[folder] = (known, extensions)


def register_folders() -> None:
    """Makes ``models/inst_styles``, ``output/inst_styles``, ``models/style_transfer`` and ``models/inst_encoders``
    known, with the shipped styles and encoders.

    Style folders are also searched for ``embedding:name``, so that a learned style works in any stock prompt.
    """
    styles = [Path(folder_paths.models_dir, STYLE_FOLDER), Path(folder_paths.get_output_directory(), STYLE_FOLDER),
              SHIPPED_STYLES]
    _register(STYLE_FOLDER, styles, STYLE_EXTENSIONS)
    _register(TRANSFER_FOLDER, [Path(folder_paths.models_dir, TRANSFER_FOLDER)], WEIGHT_EXTENSIONS)
    encoders = [Path(folder_paths.models_dir, GUESSER_FOLDER), SHIPPED_ENCODERS]
    _register(GUESSER_FOLDER, encoders, STYLE_EXTENSIONS)
    for path in folder_paths.get_folder_paths(STYLE_FOLDER):
        folder_paths.add_model_folder_path("embeddings", path)


def offer_samples() -> None:
    """Puts a photograph and paintings into ComfyUI's input folder, so that shipped workflows find pictures there.

    Files that are there stay as they are; a folder that cannot be written stays without.
    """
    folder = Path(folder_paths.get_input_directory())
    for picture in SAMPLES.glob("*.jpg"):
        if not (folder / picture.name).exists():
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture, folder / picture.name)


def model_files(folder: str) -> list[str]:
    """Names in a model folder, as loader nodes list them."""
    return folder_paths.get_filename_list(folder)


def model_path(folder: str, name: str) -> str:
    """Full path of a listed file.

    Raises:
        ValueError: no such file inside the folder.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(folder))
        raise ValueError(f"{name!r} is not in the folder {folder!r} ({places}). Put the file there and press R to "
                         "refresh the lists.")
    return path


def style_files() -> list[str]:
    """Names of all styles: those of the user first, then the shipped ones."""
    names = model_files(STYLE_FOLDER)
    shipped = [name for name in names if Path(name).parts[0] == FOR_THE_DEMO]
    return [*(name for name in names if name not in shipped), *(Path(name).as_posix() for name in shipped)]


def style_path(name: str) -> Path:
    return Path(model_path(STYLE_FOLDER, name))


def guesser_files() -> list[str]:
    """Encoders that guess styles."""
    return model_files(GUESSER_FOLDER)


def guesser_path(name: str) -> Path:
    return Path(model_path(GUESSER_FOLDER, name))


def style_folders() -> tuple[Path, Path, Path]:
    """Where to save a style, best place first: models, output, temporary."""
    return (Path(folder_paths.models_dir, STYLE_FOLDER), Path(folder_paths.get_output_directory(), STYLE_FOLDER),
            Path(folder_paths.get_temp_directory(), STYLE_FOLDER))


def library_folders() -> list[Path]:
    """All folders of learned styles, those that Load InST Style lists."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(STYLE_FOLDER)]


def searched_folders() -> list[Path]:
    """Folders in which Load InST Style and ``embedding:name`` look for files, their subfolders included."""
    folders = [*folder_paths.get_folder_paths(STYLE_FOLDER), *folder_paths.get_folder_paths("embeddings")]
    return list(dict.fromkeys(map(Path, folders)))


def embeddings_files() -> list[str]:
    """Official ``embeddings.pt`` candidates: the .pt files among the embeddings."""
    return [name for name in model_files("embeddings") if name.lower().endswith(".pt")]


def embeddings_path(name: str) -> Path:
    return Path(model_path("embeddings", name))


def fingerprint(folder: str, *names: str | None) -> str:
    """Changes when one of the named files of a model folder is replaced, or, where another node says the name (None),
    any of them."""
    named = {name for name in names if name is not None} | set(model_files(folder) if None in names else ())
    return state_dicts.fingerprint(Path(model_path(folder, name)) for name in sorted(named))


def metadata_enabled() -> bool:
    """False when ComfyUI runs with --disable-metadata."""
    return not args.disable_metadata
