import numpy as np
import pytest
from PIL import Image

COMMAND = ("-m", "convit_jax.preview", "--config", "configs/digits.py")


def test_a_sheet_shows_the_batch_before_and_after_the_devices_part(run_python, tmp_path):
    out = tmp_path / "sheet.png"
    completed = run_python(*COMMAND, "--images=8", f"--out={out}", "--config.augment.erase=1.0")
    assert completed.returncode == 0, completed.stderr
    assert "8 images of step 0" in completed.stdout
    sheet = np.asarray(Image.open(out)).astype(int)
    # Six columns of 8 pixels shown as 64, two rows, twice.
    assert sheet.shape == (2 * 2 * 80 + 16, 6 * 68, 3)
    above, below = sheet[:64, :64], sheet[176 : 176 + 64, :64]
    assert above.std() > 20
    assert np.abs(above - below).mean() > 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--images=7", "--images=7: expected an even number up to 64"),
        ("--out=sheet.txt", "expected a .png or .jpg file"),
        ("--out=/nowhere/sheet.png", "--out=/nowhere/sheet.png cannot be written to: No such file"),
        ("--step=-1", "--step=-1: expected 0 or more"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(run_python, argument, message):
    completed = run_python(*COMMAND, argument)
    assert completed.returncode == 2
    assert message in completed.stderr
    assert completed.stderr.count("\n") == 1
