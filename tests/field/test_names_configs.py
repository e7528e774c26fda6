"""Config files as users write them, and command lines as they type them (D5, D8, D9)."""

import pathlib

import pytest

from convit_jax.config.files import make_config, split_arguments, split_overrides
from convit_jax.console.command_line import Parser, add_config_flag, parse
from convit_jax.errors import InputError, MachineError
from convit_jax.system.paths import expand_home

START = "from convit_jax.config import template\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return batch\n", "line 3: NameError: name 'batch' is not defined"),
        ("def get_config(:\n    pass\n", "line 2: SyntaxError: invalid syntax"),
        ("import nosuch\ndef get_config():\n    pass\n", "line 2: ModuleNotFoundError: No module"),
        ("def get_config():\n    return None\n", r"get_config\(\) returns None, expected the Conf"),
        ("def get_config():\n    return template\n", "returns <function template"),
        ("get_config = 3\n", r"defines no get_config\(\)"),
        ("def get_config(a, b):\n    pass\n", r"get_config\(a, b\) takes 2 argument\(s\)"),
        ("def get_config():\n    raise ValueError\n", "line 3: ValueError$"),
        ("def get_config():\n    1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("import sys\ndef get_config():\n    sys.exit(3)\n", "line 4: SystemExit: 3"),
        (
            "def get_config():\n    return open('/nowhere/x')\n",
            "line 3: FileNotFoundError: No such file or directory: /nowhere/x",
        ),
        (
            "def get_config():\n    c = template()\n    c.optimizer.wieght_decay = 1.0\n",
            "line 4: no config key 'wieght_decay': did you mean 'optimizer.weight_decay'",
        ),
        (
            "def get_config():\n    c = template()\n    c.batch_size = 'many'\n",
            "line 4: TypeError: .*batch_size",
        ),
        ("def get_config():\n    return {'optimiser': {}}\n", "did you mean 'optimizer'"),
        ("def get_config():\n    assert False, 'no\\nway'\n", "line 3: AssertionError: no$"),
        ("# get_config\n\0", "SyntaxError: source code .*null bytes"),
    ],
)
def test_a_broken_config_file_is_reported_with_its_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(START + text)
    with pytest.raises(InputError, match=message) as error:
        make_config(str(path))
    assert "optimiser" in text or str(path) in str(error.value)


def test_a_config_file_without_permission_is_a_fault_of_the_machine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    raise PermissionError(13, 'Permission denied', 'x')\n")
    with pytest.raises(MachineError, match="permission denied"):
        make_config(str(path))


def test_an_argument_for_a_config_that_takes_none(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(START + "def get_config():\n    return template()\n")
    make_config(str(path))
    with pytest.raises(InputError, match=r"mine.py:small: this config takes no argument"):
        make_config(f"{path}:small")


def test_an_argument_that_a_config_requires(tmp_path):
    path = tmp_path / "mine.py"
    text = "def get_config(seed):\n    c = template()\n    c.seed = int(seed)\n    return c\n"
    path.write_text(START + text)
    assert make_config(f"{path}:3").seed == 3
    with pytest.raises(
        InputError, match=r"get_config\(seed\) takes 1 argument\(s\), expected .*AR"
    ):
        make_config(str(path))


@pytest.mark.parametrize("name", ["configs/convit_s.py", "convit_s", "convit_s.py"])
def test_a_shipped_config_from_another_directory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_config(f"{name}:fraction=0.1").data.fraction == 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/convit_x.py", "did you mean 'configs/convit_s.py'"),
        ("digit", "did you mean 'digits'"),
        ("/nowhere/mine.py", "no such file that defines get_config"),
        ("configs", "no such file that defines get_config"),
        ("configs/imagenet.py", "no such file that defines get_config"),
    ],
)
def test_a_config_that_does_not_exist(name, message, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match=message):
        make_config(name)


def test_a_config_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(START + "def get_config():\n    return template()\n")
    assert make_config("~/mine.py", [("seed", "5")]).seed == 5


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.frozen", "a.*,b.*", ("a.*", "b.*")),
        ("optimizer.frozen", "head.*", ("head.*",)),
        ("optimizer.frozen", "('a.*', 'b.*')", ("a.*", "b.*")),
        ("optimizer.frozen", "['a.*']", ("a.*",)),
        ("optimizer.frozen", r"blocks\.\d{1,2}\.norm1.*,head.*",
         (r"blocks\.\d{1,2}\.norm1.*", "head.*")),
        ("optimizer.frozen", "", ()),
        ("data.image_size", "32", (32,)),
        ("data.image_size", "32,48", (32, 48)),
        ("data.std", "0.2,0.3,1", (0.2, 0.3, 1.0)),
        ("ema_decay", "0", 0.0),
        ("keep_budget", "true", True),
        ("model.depth", "None", None),
        ("model.use_gating", "False", False),
        ("model.dtype", "bfloat16", "bfloat16"),
    ],
)  # fmt: skip
def test_values_as_they_are_typed(key, text, value, repository):
    overrides, others = split_overrides([f"--config.{key}={text}", "--out=x"])
    assert others == ["--out=x"]
    config = make_config("configs/convit_s.py", overrides)
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.seed=abc"], "--config.seed=abc: expected int"),
        (["--config.seed=1.5"], "--config.seed=1.5: expected int"),
        (["--config.seed=True"], "--config.seed=True: expected int"),
        (["--config.seed="], "--config.seed=: expected int"),
        (["--config.keep_budget=maybe"], "--config.keep_budget=maybe: expected bool"),
        (["--config.data.mean=a,b,c"], "--config.data.mean=a: expected float"),
        (["--config.data.mean=(0.1,'x')"], "--config.data.mean='x': expected float"),
        (["--config.data.image_size=32x32"], "--config.data.image_size=32x32: expected int"),
        (["--config.ema_decay=nan"], "--config.ema_decay=nan: expected float"),
        (["--config.optimizer.lr=1"], "no config key 'optimizer.lr'"),
        (["--config.augmnt.flip=1"], "no config key 'augmnt.flip': did you mean 'augment.flip'"),
        (
            ["--config.data=digits:train"],
            "config.data is a section: set a key inside it, such as data.tr",
        ),
        (["--config.seed"], "--config.seed: expected --config.seed=VALUE"),
        (["--config.seed", "--config.batch_size=3"], "expected --config.seed=VALUE"),
        (["--noconfig.seed"], "--noconfig.seed: expected --config.seed=VALUE"),
    ],
)
def test_invalid_values(arguments, message):
    with pytest.raises(InputError) as error:
        make_config("configs/convit_s.py", split_overrides(arguments)[0])
    assert message in str(error.value)


def test_switches_and_values_as_separate_arguments():
    arguments = ["--config.keep_budget", "--noconfig.keep_budget", "--config.seed", "3", "rest"]
    overrides, others = split_overrides(arguments)
    assert overrides == [("keep_budget", "true"), ("keep_budget", "false"), ("seed", "3")]
    assert others == ["rest"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_size=3", "did you mean --config.batch_size"),
        ("--optimizer.b1=3", "did you mean --config.optimizer.b1"),
        ("--cofig.seed=3", "did you mean --config.seed"),
        ("--confg=x", "did you mean '--config'"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_unknown_flags(flag, message):
    parser = Parser()
    add_config_flag(parser)
    with pytest.raises(InputError, match=message):
        parse(parser, [flag])


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data=folder:/a,b,weights=W", {"data": "folder:/a,b", "weights": "W"}),
        ("data=a,b=c,d,probe", {"data": "a,b=c,d", "probe": ""}),
        ("weights=W,data=x", {"weights": "W", "data": "x"}),
        (
            "data=wds:d/{a,b}-{0..3}.tar,weights=W",
            {"data": "wds:d/{a,b}-{0..3}.tar", "weights": "W"},
        ),
        ("", {}),
    ],
)
def test_arguments_with_commas_in_their_values(argument, expected):
    names = ("data", "weights", "epochs")
    assert split_arguments(argument, names, ("probe",), ("data", "weights")) == expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data=x,wieghts=W", "'wieghts=W': did you mean 'weights'"),
        ("data=x,prob", "'prob': did you mean 'probe'"),
        ("epochs=3,x", "'x': expected one of"),
        ("data=x,data=y", "data is given twice"),
        ("data=", "'data=': expected data=VALUE"),
        ("probe=1", "expected probe, which takes no value"),
    ],
)
def test_invalid_arguments(argument, message):
    with pytest.raises(InputError, match=message):
        split_arguments(argument, ("data", "weights", "epochs"), ("probe",), ("data", "weights"))


def test_only_a_leading_tilde_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [expand_home(name) for name in ("~/x", "~", "gs://b/~/x", "x/~", "/x")] == [
        "/home/me/x", "/home/me", "gs://b/~/x", "x/~", "/x",
    ]  # fmt: skip


def test_every_command_takes_the_home_directory(tmp_path, monkeypatch, workdir, digits):
    """Each command reads or writes the file that `--flag=~/…` names."""
    from convit_jax import analyze, convert, evaluate, load_model, predict
    from convit_jax.system import cache
    from convit_jax.training.workdir import open_workdir

    (tmp_path / "run").symlink_to(workdir)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_bytes(digits[0][0])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cached")
    assert cache.cache_directory() == tmp_path / "cached" / "convit_jax"
    assert pathlib.Path(open_workdir("~/runs/new")) == tmp_path / "runs" / "new"
    assert load_model("~/run").architecture.depth == 2
    weights = ["--weights=~/run"]
    assert predict.main([*weights, "~/pictures/one.png"]) == 0
    assert predict.main([*weights, "~/pictures"]) == 0
    assert evaluate.main([*weights, "--data=digits:test[:20]", "--confusion=~/c.csv"]) == 0
    assert (tmp_path / "c.csv").is_file()
    images = ["--images=digits:test[:4]", "--pictures=1"]
    assert analyze.main([*weights, *images, "--out=~/figures"]) == 0
    assert (tmp_path / "figures" / "report.html").is_file()
    assert convert.main(["~/run", "~/mine.safetensors"]) == 0
    assert (tmp_path / "mine.safetensors").is_file()
    assert not pathlib.Path("~").exists()


def test_a_preview_needs_no_data_to_evaluate_on(run_python, tmp_path):
    from tests.field.builders import folder

    name = folder(tmp_path / "images", ("cat", "dog"), count=8)
    completed = run_python(
        "-m", "convit_jax.preview", "--config=configs/convit_s.py", f"--config.data.train={name}",
        "--config.batch_size=8", "--config.data.image_size=32", "--images=4",
        "--config.augment.repeats=1", f"--out={tmp_path}/sheet.png",
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "sheet.png").is_file()
