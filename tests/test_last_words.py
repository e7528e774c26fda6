"""The last line of every command for wrong input, and its exit code (docs/exit_codes.md)."""

import dataclasses
import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import safetensors.numpy

from convit_jax.models import architecture
from tests.field.builders import folder, write_tar
from tests.fork_commands import fork_server
from tests.helpers import write_random_weights
from tests.processes import free_port

LONG = "x" * 5000
# The modules that commands import, loaded once by one process for all of them.
IMPORTED = (
    "tensorflow_datasets", "convit_jax.training.loop", "convit_jax.planning",
    "convit_jax.studies.running", "convit_jax.analysis.report", "convit_jax.benchmarks.model",
    "convit_jax.benchmarks.input", "convit_jax.benchmarks.attention",
    "convit_jax.benchmarks.kernel", "convit_jax.weights.exporting",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wrong command line; `@` stands for the directory of inputs, `%` for an empty one.

    Attributes:
        command, arguments, environment: the command line.
        words: parts of the expected last line, the name of the wrong input among them.
        code: the exit code.
        stdout: a file for standard output.
    """

    command: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    code: int = 2
    stdout: str = "%/stdout"
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self):
        line = " ".join((self.command, *(f"{k}={v}" for k, v in self.environment), *self.arguments))
        return ascii(line)[1:70]


def wrongs(command, before, *rows):
    """Yield the `Wrong`s of a command: each row holds the arguments after `before`, and the words.

    A dictionary at the end of a row holds further fields of `Wrong`.
    """
    for arguments, *words in rows:
        fields = words.pop() if isinstance(words[-1], dict) else {}
        arguments = arguments if isinstance(arguments, tuple) else arguments.split()
        yield Wrong(command, (*before.split(), *arguments), tuple(words), **fields)


RUN = {"code": 1}  # the run cannot continue, although the input is right
DIGITS = "--config=configs/digits.py --workdir=%/run"
TRAIN = [
    *wrongs(
        "train", "",
        ("", "expected --config=configs/FILE.py"),
        ("--workdir=%/run", "expected --config=configs/FILE.py"),
        ("--config=configs/digits.py --workdir=", "expected --workdir=DIR"),
        ("--config --workdir=%/run", "argument --config: expected one argument"),
        ("--config=configs/digits.py --workdir", "--workdir"),
    ),
    *wrongs(
        "train", DIGITS,
        # Flags and keys.
        ("--wrokdir=x", "no flag --wrokdir", "'--workdir'"),
        ("stray", "unexpected argument 'stray'"),
        ((" ",), "unexpected argument ' '"),
        ("-x", "unexpected argument '-x'"),
        ("--batch_size=3", "no flag --batch_size", "--config.batch_size"),
        ("--config.batchsize=3", "'batchsize'", "'batch_size'"),
        ("--config.model=1", "config.model is a section"),
        ("--config.seed", "--config.seed=VALUE"),
        ("--noconfig.seed", "--noconfig.seed"),
        ("--config.seed=", "--config.seed=: expected int"),
        ("--config.seed=1.5", "--config.seed=1.5: expected int"),
        ("--config.seed=-1", "config.seed=-1: expected at least 0"),
        ("--config.model.name=convit_huge", "'convit_huge'", "convit_base"),
        ("--config.model.depth=1000000", "config.model.depth=1000000: expected 1 to 256"),
        ("--config.model.gpsa_layers=9", "gpsa_layers=9: expected 0 to 4"),
        ("--config.model.init=mimetc", "config.model.init='mimetc'", "'mimetic'"),
        ("--config.model.init=impulse", "init='impulse': expected a model without GPSA layers"),
        ("--config.model.init=convolutional --noconfig.model.conv_init", "expected conv_init=True"),
        ("--config.model.positional_attention=psa", "positional_attention='psa'", "'vanilla'"),
        (
            "--config.model.positional_attention=vanilla --noconfig.model.use_gating",
            "use_gating=False: expected True", "vanilla attention has no gates",
        ),
        ("--config.data.image_size=9", "image_size=(9, 9)", "(8, 8)"),
        ("--config.data.image_size=100000", "image_size=(100000, 100000)", "at most 65,536"),
        ("--config.batch_size=99999999999", "config.batch_size=99999999999: expected 1 to"),
        ("--config.optimizer.learning_rate=1e999", "learning_rate=inf: expected a finite number"),
        (("--config.optimizer.frozen=(",), "config.optimizer.frozen: '('"),
        ("--config.optimizer.accumulate=5", "config.optimizer.accumulate=5", "divisor"),
        ("--config.augment.crop=pda", "config.augment.crop='pda'", "'pad'"),
        ("--config.loss=bce", "config.loss='bce'", "'binary'"),
        ("--config.loss_threshold=0.2", "config.loss_threshold=0.2 would not be read", "loss"),
        ("--config.optimizer.name=adam", "config.optimizer.name='adam'", "'adamw'", "'muon'"),
        ("--config.class_weights=1,2", "config.class_weights has 2 values: expected 10"),
        ("--config.class_weights=1,-2", "config.class_weights=(1.0, -2.0): expected", "above 0"),
        ("--config.tracking=wandbb", "config.tracking='wandbb'", "'wandb'", "'mlflow'"),
        ("--config.early_stopping.patience=-1", "patience=-1: expected at least 0"),
        ("--config.early_stopping.min_delta=0.1", "min_delta=0.1 would not be read", "patience"),
        ("--config.augment.three_augment", "three_augment=True is for colour images"),
        ("--config.augment.crop_padding=3", "config.augment.crop_padding", "augment.crop"),
        (("--config.train_for=nan epochs",), "config.train_for='nan epochs'"),
        ("--config.mesh.fsdp=3", "config.mesh.fsdp=3"),
        ("--config.batch_size=7", "config.batch_size: 7 images"),
        # Data.
        ("--config.data.train=x", "data 'x': unknown kind 'x'"),
        ("--config.data.train=", "data '': unknown kind"),
        ("--config.data.train=gs://x", "data 'gs://x': unknown kind 'gs'"),
        ("--config.data.train=digits", "data 'digits': expected digits:train|test"),
        ("--config.data.train=letters", "data 'letters': expected letters:train|test"),
        ("--config.data.train=digits:trian", "no split 'trian'", "'train'"),
        ("--config.data.train=digits:train[", "'train['"),
        ("--config.data.train=digits:train[5:2]", "'train[5:2]' has no examples"),
        ("--config.data.train=folder:", "data 'folder:': no directory"),
        ("--config.data.train=folder:@/nope", "no directory '@/nope'"),
        ("--config.data.train=folder:@/file", "no directory '@/file'"),
        ("--config.data.train=folder:@/loop", "no directory '@/loop'"),
        ("--config.data.train=folder:@/empty", "@/empty", "no class directories"),
        ("--config.data.train=folder:@/flat", "@/flat", "no class directories"),
        ("--config.data.train=folder:@/no_images", "@/no_images", "no images", "a, b"),
        ("--config.data.train=folder:@/parts", "train, val", "splits of a dataset"),
        ("--config.data.train=folder:@/one_class", "folder:@/one_class (1)", "other classes"),
        ("--config.data.train=folder:http://x", "'http://x'", "gs://BUCKET/PATH"),
        (f"--config.data.train=folder:{LONG}", "a name of 5,000 bytes"),
        ("--config.data.train=wds:", "data 'wds:': expected wds:PATH/x-{0000..1023}.tar"),
        ("--config.data.train=wds:@/x-{0..4}.tar", "3 of 5 shards are missing", "is @/x-2.tar"),
        ("--config.data.train=wds:@/y-{0..1}.tar", "no file matches", "'@/x-{0..1}.tar'"),
        ("--config.data.train=wds:@/nope/*.tar", "no directory '@/nope'"),
        ("--config.data.train=wds:@/images", "'@/images' has no .tar files"),
        ("--config.data.train=wds:@/x-{0.tar", "'wds:@/x-{0.tar'", "{0000..1023}"),
        ("--config.data.train=wds:@/x.tar.gz", "expected uncompressed .tar"),
        ("--config.data.train=wds:@/file", "@/file is not a tar file"),
        ("--config.data.train=wds:@/gzip.tar", "@/gzip.tar is compressed (gzip)"),
        ("--config.data.train=wds:@/cut.tar", "@/cut.tar ends at byte 1,600", "member 0.png"),
        ("--config.data.train=wds:@/unlabelled.tar", "no labelled images", "@/unlabelled.tar"),
        ("--config.data.train=wds:@/named/x.tar", "is 1, expected 0 to 0", "classnames.txt"),
        (f"--config.data.train=wds:{LONG}", "a name of 5,000 bytes"),
        ("--config.data.train=tfds:", "data 'tfds:': expected tfds:NAME"),
        ("--config.data.train=tfds:mnits:train", "'mnits'", "'mnist'"),
        ("--config.data.train=tfds:mnist:train:@/nope", "no directory '@/nope'"),
        ("--config.data.train=tfds:mnist:train:@/file", "no directory '@/file'"),
        ("--config.data.train=tfds:mnist:train:@/empty", "nothing is prepared in @/empty"),
        ("--config.data.eval=", "config.data.holdout", "data.eval"),
        ("--config.data.eval=folder:@/images", "folder:@/images has other classes"),
        ("--config.data.fraction=0.0001", "config.data.fraction=0.0001 leaves none"),
        # Weights to start from.
        ("--config.init_from=nope.pth", "no weights at nope.pth"),
        ("--config.init_from=@/other.safetensors", "@/other.safetensors", "no ConViT or DeiT"),
        ("--config.init_from=@/rgb.safetensors", "@/rgb.safetensors", "do not fit the model"),
        # A teacher.
        ("--config.distill.teacher=nope.pth", "config.distill.teacher: no weights at nope.pth"),
        ("--config.distill.teacher=@/rgb.safetensors", "images of 3 channels, the model of 1"),
        ("--config.distill.teacher=%/x.stablehlo", "no program at %/x.stablehlo"),
        ("--config.distill.kind=sotf", "config.distill.kind='sotf'", "'soft'"),
        ("--config.distill.alpha=0.2", "alpha=0.2 would not be read", "distill.teacher to a name"),
        # The machine and the launcher.
        ("", "JAX_PROCESS_ID=0", "none of them", {"environment": (("JAX_PROCESS_ID", "0"),)}),
        ("", "OMPI_COMM_WORLD_SIZE=2", {"environment": (("OMPI_COMM_WORLD_SIZE", "2"),)}),
        ("--config.model.head_dim=1000000", "memory", RUN),
    ),
    *wrongs(
        "train", "--workdir=%/run",
        # Config files.
        ("--config=configs/digit.py", "configs/digit.py", "configs/digits.py"),
        ("--config=configs/digits.py:dei", "configs/digits.py:dei", "'deit'"),
        ("--config=@/nope.py", "--config=@/nope.py: no such file"),
        ("--config=@/empty", "--config=@/empty: no such file"),
        ("--config=@/loop", "--config=@/loop: no such file"),
        ("--config=/dev/null", "--config=/dev/null: no such file"),
        (f"--config={LONG}.py", "a name of 5,003 bytes"),
        (("--config=two\nlines.py",), r"--config=two\nlines.py: no such file"),
        (("--config=caf\udce9.py",), r"--config=caf\udce9.py: no such file"),
        ("--config=@/syntax.py", "@/syntax.py, line 1: SyntaxError"),
        ("--config=@/raising.py", "@/raising.py, line 2: ZeroDivisionError"),
        ("--config=@/exiting.py", "@/exiting.py, line 2: SystemExit"),
        ("--config=@/endless.py", "@/endless.py, line 2: RecursionError"),
        ("--config=@/misspelt.py", "@/misspelt.py, line 4", "'batch_sise'", "'batch_size'"),
        ("--config=@/none.py", "@/none.py: get_config() returns None"),
        ("--config=configs/finetune.py", "data= is missing"),
        ("--config=configs/finetune.py:dta=x,weights=y", "'dta=x'", "'data'"),
        ("--config=configs/finetune.py:data=folder:@/images,weights=nope.pth", "at nope.pth"),
        ("--config=configs/finetune.py:data=folder:@/nope,weights=@/rgb.safetensors", "'@/nope'"),
        ("--config=configs/convit_s.py:fraction=7", "'fraction=7'"),
        ("--config=configs/convit_s.py", "tfds:imagenet2012:train", "nothing is prepared"),
        ("--config=@/interrupted.py", "ended by Ctrl-C", {"code": 130}),
    ),
    *wrongs(
        "train", "--config=configs/digits.py",
        # Workdirs.
        ("--workdir=@/file", "--workdir=@/file cannot be used as a directory"),
        ("--workdir=@/file/run", "--workdir=@/file/run cannot be used as a directory"),
        ("--workdir=/proc/run", "--workdir=/proc/run cannot be used as a directory"),
        ("--workdir=/dev/full", "--workdir=/dev/full cannot be used as a directory"),
        (f"--workdir=%/{LONG}", "a name of 5,000 bytes"),
        ("--workdir=s3://bucket/run", "s3://bucket/run", "gs://BUCKET/PATH"),
        ("--workdir=gs://", "gs://", "gs://BUCKET/PATH"),
        ("--workdir=@/busy", "--workdir=@/busy is in use by process 1"),
        ("--workdir=@/run", "@/run was started with another configuration", "batch_size"),
    ),
]  # fmt: skip

WEIGHTS = [
    ("--weights=", "''"),
    ("--weights=nope", "no weights at nope"),
    ("--weights=nope.pth", "no weights at nope.pth"),
    ("--weights=@/file", "@/file: expected a file that ends in"),
    ("--weights=@/file/x.pth", "no weights at @/file/x.pth"),
    ("--weights=@/empty", "no checkpoint in @/empty"),
    ("--weights=@/loop", "no weights at @/loop"),
    ("--weights=@/nowhere.safetensors", "no weights at @/nowhere.safetensors"),
    ("--weights=@/text.safetensors", "@/text.safetensors is not a whole"),
    ("--weights=@/empty.safetensors", "@/empty.safetensors is empty"),
    ("--weights=@/page.safetensors", "@/page.safetensors is a web page"),
    ("--weights=@/cut.safetensors", "@/cut.safetensors is not a whole"),
    ("--weights=@/other.safetensors", "@/other.safetensors", "no ConViT or DeiT"),
    ("--weights=@/rgb.safetensors#ema", "@/rgb.safetensors has no model called 'ema'"),
    ("--weights=@/damaged", "@/damaged", "is damaged"),
    ("--weights=http://127.0.0.1:CLOSED/x.safetensors", "CLOSED/x.safetensors", "refused"),
    ("--weights=http://127.0.0.1:CLOSED/x", "CLOSED/x: expected a file that ends in"),
    ("--weights=hf://one", "hf://one: expected hf://ORG/NAME"),
    ("--weights=ftp://x/y.pth", "'ftp://x/y.pth'", "gs://BUCKET/PATH"),
    (f"--weights={LONG}.pth", "a name of 5,004 bytes"),
    (("--weights=caf\udce9.pth",), r"no weights at caf\udce9.pth"),
]
RGB = "--weights=@/rgb.safetensors"
EVALUATE = [
    *wrongs(
        "evaluate", "",
        ("", "--weights, --data"),
        ("--wieghts=x", "no flag --wieghts", "'--weights'"),
        (RGB, "--data"),
    ),
    *wrongs("evaluate", "--data=digits:test", *WEIGHTS),
    *wrongs(
        "evaluate", RGB,
        ("--data=", "data '': unknown kind"),
        ("--data=digits:tset", "no split 'tset'", "'test'"),
        ("--data=digits:test", "10 classes", "the weights have 2"),
        ("--data=folder:@/nope", "no directory '@/nope'"),
        ("--data=wds:@/x-{0..2}.tar", "1 of 3 shards are missing", "@/x-2.tar"),
        ("--data=folder:@/broken", "@/broken/a/0.png", RUN),
    ),
    *wrongs(
        "evaluate", f"{RGB} --data=folder:@/images",
        ("stray", "stray"),
        ("--batch-size=0", "--batch-size=0: expected at least 1"),
        ("--batch-size=x", "--batch-size", "'x'"),
        ("--crop=nan", "--crop=nan"),
        ("--teacher=@/file", "--teacher: @/file"),
        ("--num-workers=-2", "--num-workers=-2"),
        ("--max-broken=1", "--max-broken=1"),
        ("--exif-rotation=up", "--exif-rotation=up", "auto"),
        ("--mask-content=99", "99 GPSA layers"),
        ("--mask-content=1 --mask-position=1", "--mask-position", "--mask-content"),
        ("--classes-of=x", "data 'x': unknown kind"),
        ("--override=dpeth=1", "--override dpeth", "'depth'"),
        ("--override=image_size=x", "--override image_size=x: expected int"),
        ("--override=image_size=17", "@/rgb.safetensors", "(17, 17)", "(16, 16)"),
        ("--override=image_size=100000", "@/rgb.safetensors", "at most 65,536"),
        ("--override=num_heads=3", "num_heads=3", "divisor"),
        ("--confusion=", "--confusion=: expected a path"),
        ("--confusion=@/empty", "--confusion=@/empty is a directory"),
        ("--confusion=@/file/x.csv", "--confusion=@/file/x.csv cannot be written to"),
        ("--confusion=/proc/x.csv", "--confusion=/proc/x.csv cannot be written to"),
        ("--confusion=/dev/full", "/dev/full: no space is left", RUN),
    ),
]  # fmt: skip
PREDICT = [
    *wrongs(
        "predict", "",
        ("", "--weights, IMAGE"),
        ("--weights=nope.pth @/good.png", "no weights at nope.pth"),
    ),
    *wrongs(
        "predict", RGB,
        ("@/good.png --top=0", "--top=0: expected at least 1"),
        ("@/good.png --topp=1", "no flag --topp", "'--top'"),
        ("@/good.png --batch-size=-1", "--batch-size=-1"),
        ("@/empty", "no images", "@/empty"),
        ("@/*.nope", "no file matches @/*.nope"),
        (("",), "''"),
        (LONG, "a name of 5,000 bytes"),
        ("http://x/y.png", "http://x/y.png", "gs://BUCKET/PATH"),
        ("@/nope.png", "no image at @/nope.png", RUN),
        ("@/file", "@/file: not an image", RUN),
        ("@/good.png @/broken.jpg", "@/broken.jpg: not an image", RUN),
        (("two\nlines.png",), r"no image at two\nlines.png", RUN),
        (("caf\udce9.png",), r"no image at caf\udce9.png", RUN),
        ("@/good.png", "no space is left on the device (standard output)",
         {"code": 1, "stdout": "/dev/full"}),
    ),
]  # fmt: skip
EMBED = [
    *wrongs(
        "embed", "",
        ("", "--weights, IMAGE, --out"),
        ("--weights=convit_tni @/good.png --out=%/x.npz", "convit_tni", "'convit_tiny'"),
        ("--weights=convit_small_plus @/good.png --out=%/x.npz", "were not released"),
    ),
    *wrongs(
        "embed", f"{RGB} @/good.png",
        ("--out=%/x.csv", "--out=%/x.csv: expected a file that ends in .npz or .parquet"),
        (("--out=",), "--out=: expected"),
        ("--out=@/file/x.npz", "--out=@/file/x.npz cannot be written to"),
        ("--out=/proc/x.npz", "--out=/proc/x.npz cannot be written to"),
        ("--out=%/x.npz --batch-size=0", "--batch-size=0: expected at least 1"),
        ("--out=%/x.npz --override=num_classes=2", "--override num_classes", "init_from"),
    ),
    *wrongs(
        "embed", f"{RGB} --out=%/x.npz",
        ("@/good.png @/broken.jpg", "@/broken.jpg: not an image", RUN),
        ("@/empty", "no images", "@/empty"),
        ("@/broken.jpg", "none of the images could be read, so nothing was written", RUN),
    ),
]  # fmt: skip
CONVERT = [
    *wrongs(
        "convert", "",
        ("", "SRC, DST"),
        ("nope.pth %/x", "no weights at nope.pth"),
        ("@/cut.safetensors %/x", "@/cut.safetensors is not a whole"),
        ("@/other.safetensors %/x.safetensors", "@/other.safetensors", "no ConViT or DeiT"),
    ),
    *wrongs(
        "convert", "@/rgb.safetensors",
        ("@/good.png", "cannot write '.png' files"),
        ("%/x.onnx --logits", "--logits: expected a DST.stablehlo, not %/x.onnx"),
        ("%/x.safetensor", "'.safetensor'", "'.safetensors'"),
        ("@/rgb.safetensors", "@/rgb.safetensors already exists"),
        ("@/empty", "@/empty already exists"),
        ("/dev/full", "/dev/full already exists"),
        (("",), "''"),
        ("@/file/x", "@/file/x cannot be written"),
        ("@/file/x.safetensors", "@/file/x.safetensors cannot be written"),
        ("/proc/x", "/proc/x cannot be written"),
        ("/proc/x.stablehlo", "/proc/x.stablehlo cannot be written"),
        ("/proc/x.onnx", "/proc/x.onnx cannot be written"),
        ("%/x.onxx", "'.onxx'", "'.onnx'"),
        ("hf://name", "hf://name: expected hf://ORG/NAME, where ORG is your user name or an"),
        ("hf://org/name/file", "hf://org/name/file: expected hf://ORG/NAME"),
        (("hf://org/my model",), "hf://org/my model: expected hf://ORG/NAME"),
        ("hf:///name --dry-run=%/x", "hf:///name: expected hf://ORG/NAME"),
        ("hf://org/name --dry-run=@/empty", "@/empty/ already exists"),
        ("hf://org/name --dry-run=@/file/x", "@/file/x", "cannot be written"),
        (("hf://org/name", "--dry-run="), "--dry-run=: expected a directory"),
        ("%/x --dry-run=%/y", "--dry-run: expected a DST hf://ORG/NAME, not %/x"),
        ("%/x.onnx --replace", "--replace: expected a DST hf://ORG/NAME, not %/x.onnx"),
        ("@/loop/x", "@/loop/x cannot be written"),
        (f"%/{LONG}", "a name of 5,000 bytes"),
        (("%/caf\udce9",), r"caf\udce9", "UTF-8"),
        ("http://x/y.safetensors", "http://x/y.safetensors", "gs://BUCKET/PATH"),
        ("%/x --override=depth=7", "depth=2", "7"),
        ("%/x --jsn", "no flag --jsn", "'--json'"),
    ),
]  # fmt: skip
ANALYZE = [
    *wrongs("analyze", "", ("", "--weights, --images, --out")),
    *wrongs(
        "analyze", f"{RGB} --images @/good.png --out",
        ((""), "--out"),
        (("",), "--out=: expected a path"),
        ("@/file", "--out=@/file cannot be used as a directory"),
        ("@/file/x", "--out=@/file/x cannot be used as a directory"),
        ("/proc/x", "--out=/proc/x cannot be used as a directory"),
        ("s3://a/b", "--out=s3://a/b", "gs://BUCKET/PATH"),
        (LONG, "a name of 5,000 bytes"),
        ("%/a --count=0", "--count=0"),
        ("%/a --pictures=x", "--pictures", "'x'"),
        ("%/a --overlay --pictures=0", "--pictures=0: expected at least 1 with --overlay"),
        ("%/a --overlay=yes", "--overlay", "'yes'"),
        ("%/a --initial", "is not a run of train.py", "expected a workdir"),
        ("%/a --overlays", "no flag --overlays", "'--overlay'"),
        ("%/a --layers=9", "layer 9", "1 to 2"),
        ("%/a --layers=a", "--layers=a"),
        ("%/a --query=1", "--query=1: expected ROW,COLUMN"),
        ("%/a --query=9,9", "query 9,9"),
        ("%/a --variant=x", "--variant", "'x'"),
        ("%/a --compare=nope.pth", "no weights at nope.pth"),
        ("%/a --compare=@/rgb.safetensors", "rgb.safetensors, rgb.safetensors", "--name"),
    ),
    *wrongs(
        "analyze", f"{RGB} --out=%/a --images",
        ("nope.png", "no image at nope.png"),
        ("@/good.png nope.png --overlay", "no image at nope.png"),
        ("@/broken.jpg", "@/broken.jpg: not an image"),
        ("@/empty", "no images", "@/empty"),
        ("digits:tset", "no split 'tset'"),
        ("folder:@/broken", "@/broken/a/0.png"),
        (("",), "''"),
    ),
]  # fmt: skip
STUDY = [
    *wrongs("study", "", ("", "--config, --fractions, --models, --out")),
    *wrongs(
        "study",
        "--config=configs/digits.py --models=convit --fractions=1 --out=%/study --dry-run",
        ("--fractions=0", "--fractions=0"),
        ("--fractions=1,1", "--fractions=1,1", "only once"),
        ("--fractions=0.0001", "--fractions=0.0001"),
        ("--models=convti", "'convti'", "'convit'"),
        ("--seeds=0", "--seeds=0"),
        ("--seeds=99999999999", "--seeds=99999999999"),
        ("--variants=h", "--variants=h", "a to g"),
        ("--variants=mimetc", "--variants=mimetc", "mimetic or impulse"),
        ("--locality-strengths=inf", "--locality-strengths=inf"),
        ("--gpsa-layers=99", "gpsa_layers=99"),
        ("--worker=2/1", "--worker=2/1"),
        ("--images-per-second=nan", "--images-per-second=nan"),
        ("--config=configs/nope.py", "configs/nope.py: no such file"),
        ("--config.sed=1", "'sed'", "'seed'"),
        ("--config.data.fraction=0.5", "config.data.fraction=0.5", "--fractions"),
        ("--config.data.train=folder:@/nope", "'@/nope'"),
        ("--out=", "--out=: expected a path"),
        ("--out=@/file", "--out=@/file cannot be used as a directory"),
        ("--out=@/images", "--out=@/images holds other files"),
        ("--out=gs://bucket/study", "--out=gs://bucket/study", "locks"),
        (f"--out={LONG}", "a name of 5,000 bytes"),
        ("--dry-rn", "no flag --dry-rn", "'--dry-run'"),
    ),
    *wrongs(
        "study", "--config=configs/digits.py --models=convit --fractions=1",
        ("--out=@/file/x", "--out=@/file/x cannot be used as a directory"),
        ("--out=/proc/x", "--out=/proc/x cannot be used as a directory"),
    ),
]  # fmt: skip
PLAN = wrongs(
    "plan", "--config=configs/convit_ti.py",
    ("", "expected --topology=NAME"),
    ("--topology=v5e-5", "--topology=v5e-5"),
    ("--topology=v4:4x4", "--topology=v4:4x4: expected v4:"),
    ("--topology=v5e-4 --config=configs/nope.py", "configs/nope.py: no such file"),
    ("--topology=v5e-4 --examples=0", "--examples=0"),
    ("--topology=v5e-4 --classes=x", "--classes: invalid int value: 'x'"),
    ("--topology=v5e-4 --sweep=x", "--sweep: invalid choice: 'x'", "batch"),
    ("--topology=v5e-4 --topolgy=x", "--topolgy", "'--topology'"),
    ("--topology=v5e-4 stray", "'stray'"),
    ("--topology=v5e-4 --config.data.image_size=100000", "at most 65,536"),
)  # fmt: skip
PREVIEW = wrongs(
    "preview", "--config=configs/digits.py",
    ("--out=%/x.gif", ".gif: expected a .png or .jpg file"),
    ("--out=", "--out=: expected a .png"),
    ("--out=/proc/x.png", "--out=/proc/x.png cannot be written to"),
    ("--out=@/file/x.png", "--out=@/file/x.png cannot be written to"),
    ("--out=gs://bucket/x.png", "gs://bucket/x.png", "on this machine"),
    (f"--out=%/{LONG}.png", "a name of 5,004 bytes"),
    ("--out=%/x.png --images=3", "--images=3: expected an even number"),
    ("--out=%/x.png --step=-1", "--step=-1"),
    ("--out=%/x.png --step=99999999999", "--step=99999999999"),
    ("--out=%/x.png --config.data.train=folder:@/nope", "'@/nope'"),
    ("--config=configs/nope.py", "configs/nope.py: no such file"),
)  # fmt: skip
BENCHMARK = wrongs(
    "benchmark", "",
    ("", "command"),
    ("modle", "'modle'", "'model'"),
    ("model convit_tinny", "'convit_tinny'", "'convit_tiny'"),
    ("model convit_tiny --image-size=17", "(17, 17)", "(16, 16)"),
    ("model convit_tiny --batch-size=0", "--batch-size=0"),
    ("model convit_tiny --batch-size=99999999999", "batch_size=99999999999"),
    ("model convit_tiny --seconds=-1", "--seconds=-1"),
    ("model convit_tiny --dtype=f8", "dtype='f8'"),
    ("model convit_tiny --compiled", "--compiled", "--against-timm"),
    ("model convit_tiny --profile=@/file", "--profile=@/file cannot be used as a directory"),
    ("model convit_tiny --profile=", "--profile=: expected a path"),
    ("input", "--data"),
    ("input --data=folder:@/nope", "'@/nope'"),
    ("input --data=digits:test --seconds=inf", "--seconds=inf"),
    ("attention --forms=nope", "--forms", "'nope'"),
    ("attention --model=x", "'x'"),
    ("kernel --topology=x", "--topology=x"),
    ("kernel --image-size=1000000", "at most 65,536"),
)  # fmt: skip

ALL = [*TRAIN, *EVALUATE, *PREDICT, *EMBED, *CONVERT, *ANALYZE, *STUDY, *PLAN, *PREVIEW, *BENCHMARK]


def shard(path, *labels):
    """A tar file of images, each with a label unless that is None."""
    members = []
    for number, label in enumerate(labels):
        members += [] if label is None else [(f"{number}.cls", str(label).encode())]
        members.append((f"{number}.png", bytes(900)))
    write_tar(path, members, tarfile.USTAR_FORMAT)


TINY = architecture(
    "convit_tiny", num_classes=2, image_size=16, depth=2, gpsa_layers=1, num_heads=4, head_dim=4,
    patch_size=4,
)  # fmt: skip
CONFIGS = {
    "syntax.py": "def get_config(:\n",
    "raising.py": "def get_config():\n    return 1 / 0\n",
    "exiting.py": "def get_config():\n    raise SystemExit(3)\n",
    "endless.py": "def get_config():\n    return get_config()\n",
    "none.py": "def get_config():\n    return None\n",
    "misspelt.py": "from convit_jax.config import template\ndef get_config():\n"
    "    c = template()\n    c.batch_sise = 3\n    return c\n",
    "interrupted.py": "def get_config():\n    raise KeyboardInterrupt\n",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, workdir):
    """A directory of inputs, most of them wrong in one way."""
    root = tmp_path_factory.mktemp("inputs")
    for name, text in CONFIGS.items():
        (root / name).write_text(text)
    (root / "file").write_text("a file\n")
    (root / "empty").mkdir()
    (root / "loop").symlink_to("loop")
    for name, count in (("images", 12), ("parts/train", 1), ("parts/val", 1)):
        folder(root / name, "ab", count, side=16, mode="RGB")
    folder(root / "one_class", "a", 1, side=16, mode="RGB")
    (root / "flat").mkdir()
    for copy in ("flat/0.png", "good.png"):
        shutil.copy(root / "one_class" / "a" / "0.png", root / copy)
    for label in "ab":
        (root / "no_images" / label).mkdir(parents=True)
        (root / "no_images" / label / "notes.txt").write_text("no image\n")
        (root / "broken" / label).mkdir(parents=True)
        (root / "broken" / label / "0.png").write_text("no image\n")
    for name, labels in {
        "x-0": [0, 1], "x-1": [1], "named/x": [0, 1], "unlabelled": [None], "cut": [0, 1],
    }.items():  # fmt: skip
        shard(root / f"{name}.tar", *labels)
    (root / "named" / "classnames.txt").write_text("a\n")
    os.truncate(root / "cut.tar", 1600)
    (root / "gzip.tar").write_bytes(gzip.compress((root / "x-0.tar").read_bytes()))
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    write_random_weights(TINY, root / "rgb.safetensors")
    whole = (root / "rgb.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "empty.safetensors").write_bytes(b"")
    (root / "text.safetensors").write_text("weights\n")
    (root / "page.safetensors").write_text("<!DOCTYPE html><html></html>\n")
    (root / "nowhere.safetensors").symlink_to("nowhere")
    safetensors.numpy.save_file({"fc.weight": np.zeros((3, 3))}, root / "other.safetensors")
    shutil.copytree(workdir, root / "run")
    shutil.copytree(workdir, root / "damaged")
    for path in (root / "damaged" / "checkpoints").rglob("state/**/*"):
        if path.is_file():
            path.write_bytes(b"")
    (root / "busy").mkdir()
    with (root / "busy" / ".lock").open("w") as lock:
        lock.write("process 1 on another machine\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root


def content(root):
    """Return the contents of a directory: each file with its digest, each directory."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in root.rglob("*")
        # Each start writes the lock of a workdir.
        if path.name != ".lock"
    }


@pytest.fixture(scope="module")
def fork(repository, digits):
    """A function that runs a command line in a fork of a process that has imported everything."""
    with fork_server(IMPORTED, repository, PYTHONPATH=str(repository)) as run:
        yield run


@pytest.fixture(scope="module")
def closed_port():
    """A port of this machine without a server."""
    return free_port()


@pytest.mark.parametrize("wrong", ALL, ids=str)
def test_wrong_input_is_one_sentence_that_names_it(wrong, fork, inputs, closed_port, tmp_path):
    def filled(text):
        text = text.replace("@", str(inputs)).replace("%", str(tmp_path))
        return text.replace("CLOSED", str(closed_port))

    before = content(inputs)
    code = fork(
        command=[*entry(wrong.command), *map(filled, wrong.arguments)],
        environment=dict(wrong.environment),
        stdout=filled(wrong.stdout),
        stderr=str(tmp_path / "stderr"),
    )
    output = (tmp_path / "stderr").read_text()
    last = output.splitlines()[-1] if output else ""
    assert code == wrong.code, output
    assert "Traceback" not in output
    assert last.startswith(f"{wrong.command}: "), output
    for word in wrong.words:
        assert filled(word) in last
    assert content(inputs) == before


# A mistake for each command that is reported at once, to test the commands as processes.
ENTRIES = {
    "train": "--wrokdir=x",
    "evaluate": "--wieghts=x",
    "predict": "--wieghts=x",
    "embed": "--wieghts=x",
    "convert": "--jsn",
    "analyze": "--imgaes=x",
    "study": "--dry-rn",
    "plan": "--topolgy=x",
    "preview": "--otu=x",
    "benchmark": "modle",
}


def entry(command):
    return ["train.py"] if command == "train" else ["-m", f"convit_jax.{command}"]


@pytest.mark.parametrize("command", ENTRIES)
def test_a_command_as_a_process_ends_in_the_same_way(command, run_python):
    wrong = ENTRIES[command]
    completed = run_python(*entry(command), wrong)
    assert completed.returncode == 2, completed.stderr
    assert completed.stderr.startswith(f"{command}: ")
    assert wrong.strip("-").removesuffix("=x") in completed.stderr
    assert len(completed.stderr.splitlines()) == 1


# Two quick command lines: one that prints, one that is wrong.
HELP, MISTAKE = "--help", "--config.seed=x"


FULL = "train: no space is left on the device (standard output)"


@pytest.mark.parametrize(
    ("line", "code", "output"),
    [
        (f'"$@" {HELP} >/dev/full', 1, FULL),
        (f'PYTHONUNBUFFERED=1 "$@" {HELP} >/dev/full', 1, FULL),
        (f'"$@" {HELP} | true; exit ${{PIPESTATUS[0]}}', 141, ""),
        (f'PYTHONUNBUFFERED=1 "$@" {HELP} | true; exit ${{PIPESTATUS[0]}}', 141, ""),
        (f'"$@" {HELP} >&-', 0, ""),
        (f'PYTHONIOENCODING=ascii "$@" {HELP} >/dev/null', 0, ""),
        (f'"$@" {MISTAKE} 2>/dev/full', 2, ""),
        (f'"$@" {MISTAKE} 2>&-', 2, ""),
        (f'"$@" {MISTAKE} <&- >&-', 2, "train: --config.seed=x: expected int"),
    ],
)
def test_exit_codes_with_full_or_closed_streams(line, code, output, repository, tmp_path):
    command = ["bash", "-c", line, "bash", sys.executable, "train.py"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    completed = subprocess.run(
        [*command, "--config=configs/digits.py", f"--workdir={tmp_path}"],
        cwd=repository, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (completed.returncode, completed.stderr.strip()) == (code, output)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("JAX_PLATFORMS", "nonsense", 2),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=0", 1),
    ],
)
def test_devices_that_jax_does_not_find_are_reported_with_the_settings(
    name, value, code, inputs, run_python
):
    arguments = (f"--weights={inputs}/rgb.safetensors", f"{inputs}/good.png")
    completed = run_python(*entry("predict"), *arguments, **{name: value})
    assert completed.returncode == code, completed.stderr
    assert "Traceback" not in completed.stderr
    last = completed.stderr.splitlines()[-1]
    assert last.startswith("predict: JAX finds no devices with")
    assert f"{name}={value}" in last


def test_a_log_that_cannot_be_written_does_not_end_a_run(fork, tmp_path):
    """The reader of the log of a long run may end, and its disk may be full."""
    run = tmp_path / "run"
    keys = "train_for=2 steps,optimizer.warmup=0 steps,eval_every=2 steps,checkpoint.every=2 steps"
    command = [*entry("train"), "--config=configs/digits.py", f"--workdir={run}"]
    command += [f"--config.{key}" for key in keys.split(",")]
    code = fork(command=command, environment={}, stdout="/dev/full", stderr="/dev/full")
    assert code == 0
    assert (run / "checkpoints" / "2").is_dir()


def test_the_page_on_exit_codes_has_every_code(repository):
    page = (repository / "docs" / "exit_codes.md").read_text()
    for code in {0, 134, 137, 141, 143, *(wrong.code for wrong in ALL)}:
        assert f"\n| {code} |" in page
    assert f" {len(ALL)} wrong inputs" in page
