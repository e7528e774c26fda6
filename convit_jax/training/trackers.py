"""A run in a tracking service, by the service's own library: Weights & Biases, MLflow."""

import dataclasses
import logging
import os
import secrets
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from etils import epath

from convit_jax.config import Config
from convit_jax.config.typed import get, keys

# The project of a run, or its experiment in MLflow, unless the service's variable names another.
_PROJECT = "convit_jax"
# MLflow takes at most this many parameters at a time.
_PARAMETERS_AT_A_TIME = 100
_STEP_TAG = "convit_jax.step"
# A run that a signal ended will be resumed.
_MLFLOW_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run reports of a step.

    Attributes:
        step: number of completed steps.
        time: seconds since 1970.
        scalars: values by name.
        images: uint8 [H, W, 3] by name.
    """

    step: int
    time: float
    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Tracker(Protocol):
    """A run in a service.

    Attributes:
        run_id: by which it can be continued.
        first_step: reports of earlier steps are already there.
        place: where to see it.
    """

    run_id: str
    first_step: int
    place: str

    def send(self, report: Report) -> None:
        """Send a report; raises what the library raises, if the service cannot be reached."""

    def finish(self, state: str) -> None:
        """Send the rest, and that the run is finished, interrupted or failed."""


class WandbTracker:
    """A run of Weights & Biases. With WANDB_MODE=offline it is a directory, for `wandb sync`."""

    def __init__(self, config: Config, workdir: epath.Path, run_id: str | None) -> None:
        import wandb  # noqa: PLC0415

        is_local = "://" not in str(workdir)
        self._wandb = wandb
        self.run_id = run_id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=self.run_id,
            resume="allow",
            name=workdir.name,
            dir=str(workdir) if is_local else None,
            config=dataclasses.asdict(config),
            # The run's log says where it is; its lines on the console are this program's.
            settings=wandb.Settings(silent=True, console="off"),
            allow_val_change=True,
        )
        self.first_step = self._run.step
        sync = f"wandb sync {self._run.settings.sync_dir}"
        self.place = sync if self._run.offline else self._run.url

    def send(self, report: Report) -> None:
        """See `Tracker`."""
        images = {name: self._wandb.Image(image) for name, image in report.images.items()}
        self._run.log({**report.scalars, **images}, step=report.step)

    def finish(self, state: str) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if state == "finished" else 1)


class MLflowTracker:
    """A run of MLflow."""

    def __init__(self, config: Config, workdir: epath.Path, run_id: str | None) -> None:
        # By default, MLflow tries for several minutes, and the run waits for it to start.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        # The writer says once that the service cannot be reached, rather than at every attempt.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        from mlflow import entities  # noqa: PLC0415
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        self._entities, self._client = entities, MlflowClient()
        self.run_id = run_id or self._create(config, workdir.name)
        run = self._client.get_run(self.run_id)
        self._client.update_run(self.run_id, status="RUNNING")
        self.first_step = int(run.data.tags.get(_STEP_TAG, 0))
        self.place = f"run {self.run_id} of {self._client.tracking_uri}"

    def _create(self, config: Config, name: str) -> str:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(project)
        )
        run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
        parameters = [self._entities.Param(key, str(get(config, key))) for key in keys(Config)]
        for first in range(0, len(parameters), _PARAMETERS_AT_A_TIME):
            part = parameters[first : first + _PARAMETERS_AT_A_TIME]
            self._client.log_batch(run_id, params=part)
        return run_id

    def send(self, report: Report) -> None:
        """See `Tracker`."""
        milliseconds = round(report.time * 1000)
        metrics = [
            self._entities.Metric(name, value, milliseconds, report.step)
            for name, value in report.scalars.items()
        ]
        tag = self._entities.RunTag(_STEP_TAG, str(report.step))
        self._client.log_batch(self.run_id, metrics=metrics, tags=[tag])
        for name, image in report.images.items():
            self._client.log_image(self.run_id, image, artifact_file=f"{name}.png")

    def finish(self, state: str) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.run_id, _MLFLOW_STATES[state])


# By the value of config.tracking, which is also the name of the package.
SERVICES: dict[str, type[WandbTracker] | type[MLflowTracker]] = {
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
}
