"""The notebook docs/tour.ipynb, executed unchanged, with a local Hub that serves random weights."""

import base64
import hashlib
import http.server
import io
import json
import re

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from convit_jax.data.sources import imagenet
from tests.field.weight_files import timm_config

WEIGHTS = "/timm/convit_tiny.fb_in1k/resolve/main/"
MAX_BYTES = 300_000
FIGURES = {"photographs", "gates", "positions", "attention", "nonlocality", "rollout", "features",
           "mistakes"}  # fmt: skip
# Appended to the notebook: what the test looks at.
RESULTS = """
import json
print(json.dumps({
    "platform": jax.devices()[0].platform,
    "probabilities": probabilities.sum(1).tolist(),
    "gates": gates.tolist(),
    "nonlocality": nonlocality.tolist(),
    "measured": analysis.measure_locality(model, images=convit_jax.preprocess(
        photographs.values())).nonlocality.tolist(),
    "rollout": rollout.sum((1, 2)).tolist(),
    "steps": outcome.step,
    "parts": [sorted(map(str, part)) for part in (train_files, val_files)],
    "evaluation": outcome.evaluation,
    "accuracy": float(tuned_accuracy),
    "names": names.tolist(),
    "expected": expected.tolist(),
    "safetensors": reloaded.tolist(),
    "stablehlo": exported.tolist(),
}))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`, by path, as the Hub does."""

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        content = content or b""
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def path(repository):
    return repository / "docs" / "tour.ipynb"


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@pytest.fixture
def hub(serve, run_python, monkeypatch, tmp_path, repository):
    """The Hub with ConViT-Ti's layout, and an empty cache for the kernel."""
    file = tmp_path / "convit_tiny.safetensors"
    script = repository / "scripts" / "make_random_weights.py"
    run_python(script, "convit_tiny", file, check=True, PYTHONPATH=repository)
    server = serve(Hub)
    config = timm_config(architecture="convit_tiny", num_classes=1000)
    config["pretrained_cfg"] |= {
        "input_size": [3, 224, 224],
        "crop_pct": imagenet.CROP_FRACTION,
        "mean": imagenet.MEAN,
        "std": imagenet.STD,
    }
    server.files = {
        f"{WEIGHTS}model.safetensors": file.read_bytes(),
        f"{WEIGHTS}config.json": json.dumps(config).encode(),
    }
    for name, value in {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "TMPDIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    return server


def test_it_is_small_and_has_no_outputs(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


def test_its_photographs_are_in_it(notebook):
    (cell,) = (cell for cell in notebook.cells if cell.id == "photographs")
    encoded = re.findall(r'"([A-Za-z0-9+/=]{1000,})"', cell.source)
    photographs = [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]
    assert [(image.format, image.size) for image in photographs] == [("JPEG", (480, 320))] * 4
    assert all(np.ptp(image) > 200 for image in photographs)  # decoded, and not blank


def test_its_links_to_other_pages_lead_there(path, notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    pages = re.findall(r"\]\(([a-z_]+\.md)\)", text)
    assert len(pages) > 5
    assert all((path.parent / page).is_file() for page in pages)


def test_it_runs_from_top_to_bottom(notebook, hub, repository):
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(repository / "docs")}}
    )
    client.execute()  # raises the error of a cell

    code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    kinds = {
        name: {kind for o in cell.outputs for kind in o.get("data", {})}
        for name, cell in code.items()
    }
    assert {name for name in code if "image/png" in kinds[name]} == FIGURES
    assert ("GET", f"{WEIGHTS}model.safetensors") in hub.requests

    results = json.loads(notebook.cells[-1].outputs[0].text)
    assert results["platform"] == "cpu"
    np.testing.assert_allclose(results["probabilities"], 1, atol=1e-5)
    np.testing.assert_allclose(results["nonlocality"], results["measured"], rtol=1e-4)
    assert np.shape(results["gates"]) == (10, 4)
    assert all(0 < share < 1 for share in results["rollout"])  # the rest is the class token's own

    train, held_out = results["parts"]
    assert (len(train), len(held_out)) == (40, 56)
    assert results["steps"] == 25
    assert results["names"] == ["cat", "coffee", "flower", "temple"]
    assert results["accuracy"] > 0.6  # chance is 0.25
    assert results["accuracy"] == pytest.approx(results["evaluation"]["accuracy"], abs=0.02)
    assert results["evaluation"]["examples"] == 56
    np.testing.assert_allclose(results["safetensors"], results["expected"], atol=1e-6)
    np.testing.assert_allclose(results["stablehlo"], results["expected"], atol=0.01)
