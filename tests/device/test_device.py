"""No GPU is needed to find what would fail on every GPU: tensors on different devices or in different
precision, and float64, which Apple's do not know."""
import os
import subprocess
import sys
from pathlib import Path

import pretend
import pytest

TESTS = Path(__file__).resolve().parents[1]
MODELS = os.environ.get("INST_MODELS")

needs_compiler = pytest.mark.skipif(not pretend.COMPILER or sys.platform != "linux", reason="needs g++ on Linux")
needs_comfyui = pytest.mark.skipif(not (MODELS and os.environ.get("INST_COMFYUI")),
                                   reason="needs ComfyUI: run 'python3 tools/dev.py test'")

# Each way to bring pictures, prompts and weights together, once.
CHOSEN = [
    "host/test_nodes.py::test_learn_saves_a_file_that_equals_its_output[attention]",
    "host/test_nodes.py::test_learn_saves_a_file_that_equals_its_output[paper]",
    "host/test_nodes.py::test_import_of_an_official_file",
    "host/test_learning.py::test_learning_lowers_a_held_out_loss[direct]",
    "host/test_learning.py::test_learning_lowers_a_held_out_loss[released]",
    "host/test_style_layers.py::test_sampling_sees_a_late_style_as_learning_did",
    "host/test_style_layers.py::test_learning_late_layers_lowers_the_loss_and_is_saved_as_such",
    "host/test_families.py::test_learn_apply_invert_sample[sdxl]",
    "host/test_families.py::test_learn_apply_invert_sample[flux]",
    "host/test_families.py::test_recomputed_layers_give_the_same_gradient[sd3]",
    "host/test_golden_sampling.py",
    "host/test_sampling.py::test_three_routes_one_picture",
    "host/test_composition.py::test_a_masked_latent_is_kept_outside_by_stock_samplers_too",
    "host/test_composition.py::test_controlnet_acts_in_sampling_within_its_percentages",
    "host/test_conditioning.py::test_apply_equals_embedding_in_a_stock_prompt",
    "host/test_styleshot_nodes.py::test_inst_sample_and_loras_work_with_it",
    "host/test_transfer_nodes.py::test_odd_images_and_batches",
    "host/test_transfer_nodes.py::test_luminance_keeps_the_contents_chroma",
    "host/test_transfer_nodes.py::test_gatys_paints_inside_inference_mode",
    "host/test_compare_nodes.py::test_clip_similarity_comes_with_clip_vision",
    "host/test_compare_nodes.py::test_metrics_make_a_table_and_json",
    "host/test_compare_nodes.py::test_wide_pictures_and_sets_are_measured_on_any_device",
    "host/test_compare_nodes.py::test_what_needs_float64_comes_out_of_any_device",
]

MIXED = """
import torch
from pathlib import Path
import pretend
device = pretend.register(Path({folder!r}))
here, there = torch.ones(2, 2, device=device), torch.ones(2, 2)
assert ((here @ here).cpu() == 2).all() and (here * torch.tensor(2.0)).sum().item() == 8
here.requires_grad_()
(here * 3).sum().backward()
assert here.grad.device == device and (here.grad.cpu() == 3).all()
try:
    here @ there
except RuntimeError as error:
    assert "mixes" in str(error), error
else:
    raise AssertionError("mixing devices went unnoticed")
for refused in (lambda: torch.nn.functional.adaptive_avg_pool2d(torch.ones(1, 1, 64, 6, device=device), (18, 6)),
                lambda: torch.nn.functional.adaptive_max_pool2d(torch.ones(1, 1, 7, 6, device=device), 2),
                lambda: torch.nn.functional.interpolate(torch.ones(1, 1, 8, 8, device=device), (3, 5), mode="bicubic",
                                                        antialias=True),
                lambda: torch.linalg.eigh(torch.eye(2, device=device)),
                lambda: torch.ones(3, dtype=torch.long, device=device).cumsum(0),
                lambda: torch.ones(2, device=device).double()):
    try:
        refused()
    except RuntimeError as error:
        assert "pretend device" in str(error), error
    else:
        raise AssertionError("what Apple's GPUs refuse went unnoticed")
assert torch.nn.functional.adaptive_avg_pool2d(torch.ones(1, 1, 8, 6, device=device), (4, 3)).shape == (1, 1, 4, 3)
assert torch.ones(3, device=device).cumsum(0)[2].item() == 3
status = 0
"""


def run(code: str, **variables: str) -> None:
    """Runs ``code``, which leaves its exit status in ``status``, in a process of its own.

    It ends without tidying up: torch's backward thread of a Python backend may abort a process that waits for it.
    """
    code = f"import os, sys\n{code}\nsys.stdout.flush()\nos._exit(status)"
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **variables})
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@needs_compiler
def test_the_pretend_device_computes_and_refuses_to_mix(tmp_path):
    run(MIXED.format(folder=str(Path(MODELS).parent if MODELS else tmp_path)))


@needs_compiler
@needs_comfyui
def test_nothing_mixes_devices_or_precision():
    options = ["-c", "pytest.ini", "--rootdir=.", "-q", "-p", "no:cacheprovider", *CHOSEN]
    run(f"import pytest\nstatus = int(pytest.main({options!r}))", INST_DEVICE="pretend")
