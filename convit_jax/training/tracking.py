"""Sending a run's metrics to a tracking service while it trains.

A thread sends them, so training neither waits for the service nor ends when it cannot be reached.
The service's own variables say where it is (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, …).
"""

import collections
import contextlib
import importlib.util
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from clu import metric_writers
from etils import epath

from convit_jax.config import Config
from convit_jax.errors import InputError, boundary, first_line
from convit_jax.system.whole_file import write_whole
from convit_jax.training.trackers import SERVICES, Report, Tracker

log = logging.getLogger(__name__)

# Seconds after a failure until the next attempt, and for the last one, at the end of the run.
_RETRY_SECONDS, _CLOSING_SECONDS = 60.0, 30.0
# Reports kept for a service that cannot be reached; the oldest are given up.
_MAX_PENDING = 100_000
_FILE = "tracking.json"
_EXPECTED = {
    "wandb": "a login (wandb login), or WANDB_MODE=offline",
    "mlflow": "a server or database that can be reached, in MLFLOW_TRACKING_URI",
}


class TrackingWriter(metric_writers.MetricWriter):
    """Passes scalars and images on to a tracking service.

    Attributes:
        interrupted: set it if a signal ended the run.
    """

    def __init__(self, service: str, tracker: Tracker) -> None:
        """Create the writer for a run in a service."""
        self.interrupted = False
        self._service, self._tracker = service, tracker
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._unsent: collections.deque[Report] = collections.deque(maxlen=_MAX_PENDING)
        self._state, self._failed_at, self._has_failed = "", 0.0, False
        self._thread = threading.Thread(target=self._send_all, name="tracking", daemon=True)
        self._thread.start()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Send scalars, unless the run sent those of this step before it was resumed."""
        values = {name: float(value) for name, value in scalars.items()}
        self._put(Report(step, time.time(), scalars=values))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Send images, uint8 [H, W, 3] each."""
        arrays = {name: np.asarray(image) for name, image in images.items()}
        self._put(Report(step, time.time(), images=arrays))

    def _not_sent(self, *arguments: Any, **options: Any) -> None:
        """Do nothing: a run writes none of these, or the service has them from the config."""

    write_summaries = write_videos = write_audios = write_histograms = _not_sent
    write_texts = write_hparams = flush = close = _not_sent

    def finish(self, state: str) -> None:
        """Send the rest, within half a minute, and the state: finished, interrupted, failed."""
        self._state = state
        self._reports.put(None)
        self._thread.join(_CLOSING_SECONDS)
        if self._thread.is_alive() or self._unsent:
            log.warning("%s did not receive the end of this run", self._service)

    def _put(self, report: Report) -> None:
        if report.step >= self._tracker.first_step:
            self._reports.put(report)

    def _send_all(self) -> None:
        """Send the reports in order, up to a None; what cannot be sent is tried again later."""
        while (report := self._reports.get()) is not None:
            self._unsent.append(report)
            if time.monotonic() > self._failed_at + _RETRY_SECONDS or not self._has_failed:
                self._try_to_send()
        self._try_to_send()
        if not self._unsent:
            with self._tolerating_failures():
                self._tracker.finish(self._state)

    def _try_to_send(self) -> None:
        with self._tolerating_failures():
            while self._unsent:
                self._tracker.send(self._unsent[0])
                self._unsent.popleft()

    @contextlib.contextmanager
    def _tolerating_failures(self) -> Iterator[None]:
        """Log the first failure alone; the library may raise anything."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                log.warning(
                    "%s cannot be reached (%s): training goes on, and sending is tried again; "
                    "metrics.jsonl has everything",
                    self._service,
                    first_line(error),
                )
            self._failed_at, self._has_failed = time.monotonic(), True


def check_installed(service: str) -> None:
    """Check that a service's package is installed, before anything else is done.

    Raises:
        InputError: it is not.
    """
    if service in SERVICES and importlib.util.find_spec(service) is None:
        raise InputError(
            f"config.tracking='{service}' needs another package: pip install {service}"
        )


@contextlib.contextmanager
def tracked_run(
    config: Config, workdir: epath.Path, *, is_resumed: bool
) -> Iterator[TrackingWriter | None]:
    """Provide the writer of the tracking service that a config names; None for no service.

    Only the first process tracks. A resumed run continues the service's run whose id is in
    `tracking.json` in the workdir. If it cannot be continued, this is logged and training goes on;
    a new run that cannot be started there is a mistake that is cheap to correct.

    Args:
        config: the configuration.
        workdir: directory of the run.
        is_resumed: whether the run continues from a checkpoint.

    Raises:
        InputError: a new run cannot be started in the service.
    """
    service = config.tracking
    if service not in SERVICES or jax.process_index():
        yield None
        return
    tracker = _open_tracker(config, workdir, is_resumed=is_resumed)
    if tracker is None:
        yield None
        return
    log.info("tracking       %s", tracker.place)
    writer, state = TrackingWriter(service, tracker), "failed"
    try:
        yield writer
        state = "interrupted" if writer.interrupted else "finished"
    finally:
        writer.finish(state)


def _open_tracker(config: Config, workdir: epath.Path, *, is_resumed: bool) -> Tracker | None:
    """Start a run in the service, or continue it; None if it cannot be continued."""
    service, path = config.tracking, workdir / _FILE
    run_ids: dict[str, str] = {}
    if is_resumed and path.exists():
        with boundary(str(path)):
            run_ids = {
                str(name): str(value) for name, value in json.loads(path.read_text()).items()
            }
    run_id = run_ids.get(service)
    try:
        tracker = SERVICES[service](config, workdir, run_id)
    except Exception as error:  # the library may raise anything
        reason = first_line(error)
        if run_id is None:
            raise InputError(
                f"config.tracking='{service}' cannot be started: {reason}; expected "
                f"{_EXPECTED[service]}"
            ) from error
        log.warning("%s cannot be reached (%s): this start is not tracked", service, reason)
        return None
    write_whole(path, json.dumps(run_ids | {service: tracker.run_id}) + "\n")
    return tracker
