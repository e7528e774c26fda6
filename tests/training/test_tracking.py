"""Tracking, with stand-ins of the services' libraries that record the calls of their interface."""

import importlib.machinery
import json
import os
import sys
import threading
import types

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convit_jax.config.keys import TRACKING
from convit_jax.errors import InputError
from convit_jax.training import loop, tracking
from convit_jax.training.trackers import SERVICES, Report
from tests.helpers import read_metrics


class Service:
    """A tracking service: what each run received, and whether it can be reached."""

    def __init__(self):
        self.runs, self.reachable, self.first_step = {}, True, 0

    def __call__(self, config, workdir, run_id):
        """Start a run, or continue it, as the classes in `trackers` do."""
        self.check()
        run_id = run_id or f"run{len(self.runs)}"
        self.runs.setdefault(run_id, [])
        return types.SimpleNamespace(
            run_id=run_id, first_step=self.first_step, place="a service",
            send=lambda report: self.receive(run_id, report),
            finish=lambda state: self.receive(run_id, state),
        )  # fmt: skip

    def check(self):
        if not self.reachable:
            raise ConnectionError("no route to the service\nTraceback …")

    def receive(self, run_id, item):
        self.check()
        self.runs[run_id].append(item)

    def scalars(self, run_id="run0"):
        reports = [item for item in self.runs[run_id] if isinstance(item, Report)]
        return [(report.step, dict(report.scalars)) for report in reports if report.scalars]


@pytest.fixture
def service(monkeypatch):
    """A stand-in for Weights & Biases."""
    service = Service()
    monkeypatch.setitem(SERVICES, "wandb", service)
    monkeypatch.setattr(tracking, "check_installed", lambda name: None)
    monkeypatch.setattr(loop, "check_installed", lambda name: None)
    return service


@pytest.fixture
def start(service, make_config, tmp_path):
    """A function that starts a run in the service, or continues it."""
    config = make_config(tracking="wandb")
    return lambda is_resumed=False: tracking.tracked_run(
        config, epath.Path(tmp_path), is_resumed=is_resumed
    )


def test_the_services_are_those_of_the_key():
    assert {"none", *SERVICES} == set(TRACKING)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    tracking.check_installed("none")
    with pytest.raises(InputError, match="tracking='mlflow' needs another package: pip install m"):
        tracking.check_installed("mlflow")


def test_reports_arrive_in_order_and_a_resumed_run_continues(start, service):
    with start() as writer:
        for step in range(5):
            writer.write_scalars(step, {"train/loss": np.float32(step)})
        writer.flush()
        writer.interrupted = True
    assert service.scalars() == [(step, {"train/loss": step}) for step in range(5)]
    assert service.runs["run0"][-1] == "interrupted"
    service.first_step = 4
    with start(is_resumed=True) as writer:
        for step in (3, 4, 5):
            writer.write_scalars(step, {"train/loss": 0.0})
    assert [step for step, _ in service.scalars()][5:] == [4, 5]
    assert service.runs["run0"][-1] == "finished"


def test_a_run_that_starts_again_is_a_new_one(start, service):
    for _ in range(2):
        with start():
            pass
    assert list(service.runs) == ["run0", "run1"]


def test_an_error_of_the_run_is_reported(start, service):
    with pytest.raises(ZeroDivisionError), start():
        _ = 1 / 0
    assert service.runs["run0"] == ["failed"]


def test_a_failure_is_said_once_and_what_was_not_sent_is_sent_later(
    start, service, package_log, monkeypatch
):
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.0)
    with start() as writer:
        service.reachable = False
        for step in range(3):
            writer.write_scalars(step, {"train/loss": step})
        while len(writer._unsent) < 3:
            pass
        service.reachable = True
        writer.write_scalars(3, {"train/loss": 3})
    assert [step for step, _ in service.scalars()] == [0, 1, 2, 3]
    # The fixture and pytest may both have captured a record.
    warnings = {id(record): record.getMessage() for record in package_log.records}
    (warning,) = warnings.values()
    assert warning.startswith("wandb cannot be reached (no route to the service): training go")


def test_a_service_that_hangs_delays_only_the_end(start, service, package_log, monkeypatch):
    monkeypatch.setattr(tracking, "_CLOSING_SECONDS", 0.05)
    released = threading.Event()
    monkeypatch.setattr(service, "receive", lambda *arguments: released.wait(30))
    with start() as writer:
        for step in range(100):
            writer.write_scalars(step, {"train/loss": 0.0})
    released.set()
    assert "wandb did not receive the end of this run" in package_log.text


def test_a_new_run_that_cannot_be_tracked_does_not_begin(start, service, tmp_path):
    service.reachable = False
    message = "^config.tracking='wandb' cannot be started: no route to the service; expected a log"
    with pytest.raises(InputError, match=message), start():
        pass
    assert not (tmp_path / "tracking.json").exists()


def test_a_resumed_run_goes_on_without_the_service(start, service, package_log, tmp_path):
    with start():
        pass
    service.reachable = False
    with start(is_resumed=True) as writer:
        assert writer is None
    assert "wandb cannot be reached (no route to the service): this start is" in package_log.text
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"wandb": "run0"}


def test_only_the_first_process_tracks(start, service, monkeypatch):
    monkeypatch.setattr(tracking.jax, "process_index", lambda: 1)
    with start() as writer:
        assert writer is None
    assert not service.runs


def test_a_run_sends_what_it_writes_and_shows_its_beginning(service, make_config, tmp_path):
    """Trained in two starts: the service and TensorBoard have what metrics.jsonl has."""
    options = {"tracking": "wandb", "eval_every": "2 steps", "checkpoint__every": "2 steps"}
    for steps in (2, 4):
        config = make_config(train_for=f"{steps} steps", **options)
        loop.train(config, str(tmp_path))
    assert list(service.runs) == ["run0"]
    lines = [(line.pop("step"), line) for line in read_metrics(tmp_path)]
    for _, line in lines:
        del line["epoch"]
    assert service.scalars() == lines
    assert [item for item in service.runs["run0"] if isinstance(item, str)] == ["finished"] * 2
    (sheet,) = (r.images["first images"] for r in service.runs["run0"] if getattr(r, "images", 0))
    # Four by four pictures of eight pixels, enlarged to 64, with their captions.
    assert sheet.shape == (4 * 80, 4 * 68, 3)
    assert sheet.std() > 20

    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    (text,), (image,) = events.Tensors("config"), events.Tensors("first images")
    assert json.loads(text.tensor_proto.string_val[0]) == json.loads(
        json.dumps(tracking_free(tmp_path))
    )
    assert (text.step, image.step) == (0, 0)
    assert image.tensor_proto.string_val[:2] == [b"272", b"320"]


def tracking_free(workdir):
    """Return the config of a workdir as its first start had it."""
    record = json.loads((workdir / "config.json").read_text())
    del record["versions"]
    return record | {"train_for": "2 steps"}


@pytest.fixture
def install(monkeypatch):
    """A function that puts a module where `import` finds it."""

    def put(name, **attributes):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


def test_wandb_is_called_by_its_interface(install, make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    calls, logged = [], []

    class Run:
        step, offline, url = 7, True, None
        settings = types.SimpleNamespace(sync_dir="DIR")
        finish = staticmethod(lambda exit_code: logged.append(exit_code))
        log = staticmethod(lambda values, step: logged.append((step, values)))

    def init(**arguments):
        calls.append(arguments)
        return Run

    install("wandb", init=init, Image=lambda image: ("image", image.shape), Settings=dict)
    tracker = SERVICES["wandb"](make_config(seed=3), epath.Path(tmp_path), None)
    assert (tracker.first_step, tracker.place) == (7, "wandb sync DIR")
    picture = np.zeros((4, 5, 3), np.uint8)
    tracker.send(Report(9, 0.0, {"train/loss": 1.0}, {"first images": picture}))
    tracker.finish("failed")
    values = {"train/loss": 1.0, "first images": ("image", (4, 5, 3))}
    assert logged == [(9, values), 1]
    assert calls[0]["project"] == "digits"
    assert (calls[0]["id"], calls[0]["resume"]) == (tracker.run_id, "allow")
    assert (calls[0]["dir"], calls[0]["config"]["seed"]) == (str(tmp_path), 3)
    assert SERVICES["wandb"](make_config(), epath.Path(tmp_path), "abc").run_id == "abc"


def test_mlflow_is_called_by_its_interface(install, make_config, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    calls = []

    class Client:
        tracking_uri = "sqlite:///x.db"
        tags = {"convit_jax.step": "12"}  # noqa: RUF012

        def get_run(self, run_id):
            return types.SimpleNamespace(data=types.SimpleNamespace(tags=self.tags))

        def create_run(self, experiment_id, run_name):
            calls.append(("create_run", experiment_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def __getattr__(self, name):
            def record(*arguments, **options):
                calls.append((name, *arguments, *options.items()))
                return {"create_experiment": "e1"}.get(name)

            return record

    def entity(*values):
        return values

    entities = install("mlflow.entities", Metric=entity, Param=entity, RunTag=entity)
    install("mlflow", entities=entities)
    install("mlflow.tracking", MlflowClient=Client)
    tracker = SERVICES["mlflow"](make_config(seed=3), epath.Path(tmp_path), None)
    assert (tracker.run_id, tracker.first_step) == ("r1", 12)
    tracker.send(Report(9, 2.5, {"train/loss": 1.0}))
    tracker.finish("interrupted")
    names = [call[0] for call in calls]
    assert names[:3] == ["get_experiment_by_name", "create_experiment", "create_run"]
    assert calls[2][1:] == ("e1", tmp_path.name)
    batches = [call[2][1] for call in calls if call[0] == "log_batch" and call[2][0] == "params"]
    assert ("seed", "3") in [p for batch in batches for p in batch]
    assert max(map(len, batches)) <= 100
    metrics = ("metrics", [("train/loss", 1.0, 2500, 9)])
    assert calls[-2] == ("log_batch", "r1", metrics, ("tags", [("convit_jax.step", "9")]))
    assert calls[-1] == ("set_terminated", "r1", "KILLED")
    calls.clear()
    assert SERVICES["mlflow"](make_config(), epath.Path(tmp_path), "r0").run_id == "r0"
    assert calls == [("update_run", "r0", ("status", "RUNNING"))]
