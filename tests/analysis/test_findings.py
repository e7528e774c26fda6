import numpy as np
import pytest

from convit_jax.analysis.findings import collect_findings
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import create_model


@pytest.mark.parametrize(
    ("count", "pictures", "indices"), [(2, 3, [0, 1]), (5, 2, [0, 2]), (2, 0, [])]
)
def test_pictures_show_different_images(count, pictures, indices):
    """With fewer images than pictures, each image is shown once."""
    model = create_model(
        "deit_tiny", num_classes=2, image_size=16, patch_size=8, depth=1, head_dim=4
    )
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    findings = collect_findings("DeiT", model, pixels, Preprocessing((16, 16)), pictures=pictures)
    assert np.array_equal(findings.images, pixels[indices])
    assert findings.maps.shape == (1, len(indices), 3, 2, 2)
