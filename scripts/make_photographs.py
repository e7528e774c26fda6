"""Make JPEGs that resemble ImageNet's, for tests at scale without ImageNet.

    python scripts/make_photographs.py /tmp/photographs --count 3000
    python scripts/make_photographs.py /tmp/photographs --count 3000 --imagenet /tmp/imagenet

They are parts of scikit-learn's two photographs with shifted hues, of about 500x375 pixels and
106 kB like ImageNet's: ten classes, two photographs times five hues. The directory contains
train/CLASS and validation/CLASS. With --imagenet the same images are also packed into tar files
like ImageNet's and prepared by TFDS's builder: read them as tfds:imagenet2012:train:DIRECTORY.
"""

import argparse
import io
import pathlib
import tarfile

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

HUES = 5
SIZE = (375, 500)
QUALITY = 94


def photograph(rng: np.random.Generator, photographs: list[np.ndarray], label: int) -> bytes:
    """Return a JPEG of a class: a random part of a photograph, with shifted hue and noise."""
    source = photographs[label // HUES]
    scale = rng.uniform(1.0, 1.6)
    height, width = (round(side * scale * rng.uniform(0.9, 1.0)) for side in SIZE)
    height, width = min(height, source.shape[0] - 1), min(width, source.shape[1] - 1)
    top, left = rng.integers(source.shape[0] - height), rng.integers(source.shape[1] - width)
    part = cv2.resize(source[top : top + height, left : left + width], SIZE[::-1])
    part = part[:, ::-1] if rng.random() < 0.5 else part
    hsv = cv2.cvtColor(part, cv2.COLOR_RGB2HSV)
    hue = 180 * (label % HUES) / HUES + rng.uniform(-6, 6)
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(hue)) % 180
    noise = rng.normal(0.0, rng.uniform(5.0, 13.0), (*SIZE, 1))
    pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) + noise
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def write_tar(path: pathlib.Path, members: dict[str, bytes]) -> None:
    """Write a tar file of members given by name and content."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def prepare_imagenet(root: pathlib.Path, data_dir: str, file_format: str) -> None:
    """Pack the images into tar files like ImageNet's, and prepare them with TFDS.

    The training labels are the first ten of ImageNet's. TFDS assigns the validation labels by
    position, from ImageNet's own list, so they are meaningless here.
    """
    # Slow to import, and only needed with --imagenet.
    import tensorflow_datasets as tfds  # noqa: PLC0415

    builder = tfds.builder("imagenet2012", data_dir=data_dir, file_format=file_format)
    manual = pathlib.Path(data_dir) / "downloads" / "manual"
    manual.mkdir(parents=True, exist_ok=True)
    classes = {}
    for label, directory in enumerate(sorted((root / "train").iterdir())):
        synset = builder.info.features["label"].int2str(label)
        files = sorted(directory.iterdir())
        class_tar = manual / f"{synset}.tar"
        write_tar(class_tar, {f"{synset}_{f.stem}.JPEG": f.read_bytes() for f in files})
        classes[class_tar.name] = class_tar.read_bytes()
        class_tar.unlink()
    write_tar(manual / "ILSVRC2012_img_train.tar", classes)
    files = sorted((root / "validation").rglob("*.jpg"))
    names = (f"{{}}_{number:08d}.JPEG" for number in range(1, len(files) + 1))
    members = {name: file.read_bytes() for name, file in zip(names, files, strict=True)}
    for split in ("val", "test"):
        split_members = {n.format(f"ILSVRC2012_{split}"): c for n, c in members.items()}
        write_tar(manual / f"ILSVRC2012_img_{split}.tar", split_members)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual, num_shards=8)
    )


def main() -> None:
    """Write the images and, with --imagenet, prepare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=3000, help="training images (default 3000)")
    parser.add_argument("--imagenet", metavar="DIRECTORY", help="TFDS data directory to prepare")
    parser.add_argument("--file-format", default="tfrecord", help="tfrecord or array_record")
    arguments = parser.parse_args()
    photographs = load_sample_images().images
    splits = {"train": arguments.count, "validation": max(arguments.count // 10, 20)}
    for seed, (split, count) in enumerate(splits.items()):
        rng = np.random.default_rng(seed)
        sizes = []
        for i in range(count):
            label = i % (2 * HUES)
            path = arguments.directory / split / f"class_{label}" / f"{i:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(rng, photographs, label))
            sizes.append(path.stat().st_size)
        print(f"{arguments.directory / split}: {count} images of {np.mean(sizes) / 1e3:.0f} kB")
    if arguments.imagenet:
        prepare_imagenet(arguments.directory, arguments.imagenet, arguments.file_format)
        print(f"read it as tfds:imagenet2012:train:{arguments.imagenet}")


if __name__ == "__main__":
    main()
