"""tools/evaluate.py --workflow: the server gets both pictures, and what it saves comes back."""
import json

import evaluate
import pytest
import torch
from workflows.graph import Graph


@pytest.fixture()
def workflow(client, object_info, picture, tmp_path):
    """Saves the picture that comes from the Load Image called Painting."""
    def write(*titles: str):
        g = Graph(object_info, {})
        with g.group("All", "#888"):
            for title in titles:
                g.add(title, "LoadImage", title, image=picture)
            g.add("saved", "SaveImage", images=(titles[-1], 0), filename_prefix="evaluated")
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(g.document()))
        return evaluate.Workflow(path, client.url)

    return write


def test_a_workflow_gets_both_pictures_and_gives_its_saved_one(workflow, home):
    content, style = (torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    painter = workflow("Photograph", "Painting")
    assert (painter(content, style, None) - style).abs().max() <= 0.5 / 255 + 1e-6
    assert (home / "input" / painter.prompt["1"]["inputs"]["image"]).read_bytes() == evaluate.as_png(content)
    with pytest.raises(evaluate.EvaluationError, match="no Load Image called Painting"):
        workflow("Photograph", "Other")(content, style, None)
