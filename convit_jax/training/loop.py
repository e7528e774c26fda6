"""The training loop: from a config and a workdir to a trained model, resuming if possible."""

import collections
import contextlib
import dataclasses
import functools
import logging
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from clu import metric_writers, periodic_actions
from etils import epath

from convit_jax import data
from convit_jax.config import Config
from convit_jax.console.screen import Screen, duration_in_words
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.broken_images import BrokenImageExchange, check_at_end
from convit_jax.distributed.processes import process_screen
from convit_jax.errors import RunError
from convit_jax.evaluation.sums import means, sum_over_examples
from convit_jax.training import checkpoints as saving
from convit_jax.training import workdir as workdirs
from convit_jax.training.agreement import check_same_data, check_same_teacher, check_same_workdir
from convit_jax.training.attention_log import make_attention_log
from convit_jax.training.beginning import write_beginning
from convit_jax.training.clock import Clock
from convit_jax.training.distillation import open_config_teacher
from convit_jax.training.early_stopping import EarlyStopping, resume_early_stopping
from convit_jax.training.examples import class_weights_of, open_training_data
from convit_jax.training.experiment import NUM_PROFILED_STEPS, Experiment, make_experiment
from convit_jax.training.placement import Placement, memory_advice, place, place_teacher
from convit_jax.training.reporting import ResumePoint, make_writer
from convit_jax.training.restoration import restore_newest
from convit_jax.training.resumption import DataRecord, check_same_run
from convit_jax.training.signals import StopRequest, stop_on_signals
from convit_jax.training.step import Metrics, TrainState
from convit_jax.training.tracking import check_installed, tracked_run
from convit_jax.training.utilisation import make_utilisation
from convit_jax.training.warm_start import warm_start
from convit_jax.training.window import MetricsWindow, NotFiniteError
from convit_jax.weights import Card, open_weights

log = logging.getLogger(__name__)

# Steps that may be in flight before the host waits: enough to keep the devices busy, few enough
# that the waiting batches do not fill the devices' memory.
STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: number of completed steps.
        stopped_by: number of the signal that ended the run early, or None.
        evaluation: the metrics of the last evaluation, if there was one.
        signal: number of the last stop signal received, even too late to end early, or None.
    """

    step: int
    stopped_by: int | None
    evaluation: dict[str, float] | None
    signal: int | None = None


def train(config: Config, workdir: str, screen: Screen | None = None) -> Outcome:
    """Train, evaluate and save checkpoints, resuming from the workdir's newest checkpoint.

    Args:
        config: the configuration.
        workdir: directory of the run, created if it does not exist; `gs://` is supported.
        screen: an open screen for the progress; None to open one.

    Returns:
        How the run ended: at its last step, earlier because evaluations no longer improved, or by
        SIGTERM or Ctrl-C with the state saved.

    Raises:
        InputError: the config, the data, the devices or the workdir do not fit together.
        RunError: the loss is not finite, or a checkpoint cannot be written or read.
    """
    with contextlib.ExitStack() as stack:
        screen = screen or stack.enter_context(process_screen())
        stop = stack.enter_context(stop_on_signals())
        check_installed(config.tracking)
        directory = workdirs.open_workdir(workdir)
        stack.enter_context(workdirs.lock_workdir(directory))
        check_same_workdir(directory)
        examples, eval_examples = open_training_data(config)
        check_same_data(examples, "data.train")
        check_same_data(eval_examples, "data.eval")
        mesh = meshes.create_mesh(config.mesh.fsdp)
        class_names = examples.class_names
        teacher = open_config_teacher(config, len(class_names), class_names, mesh=mesh)
        check_same_teacher(teacher)
        experiment = make_experiment(
            config,
            num_examples=len(examples),
            num_classes=len(class_names),
            class_weights=class_weights_of(config, examples),
            mesh=mesh,
            teacher=teacher,
        )
        d = config.data
        options = data.LoaderOptions(
            d.num_workers, d.prefetch_batches, d.max_broken, d.exif_rotation
        )
        # One pool of workers reads the training batches, the evaluations and the attention log.
        pool = stack.enter_context(data.worker_pool(options))
        run = _Run(experiment, place(experiment, mesh), examples, eval_examples, options, pool)
        checkpoint_directory = directory / "checkpoints"
        run.broken_images.resume(
            check_same_run(
                checkpoint_directory,
                config,
                class_names,
                len(examples),
                "" if teacher is None else teacher.digest,
            )
        )
        checkpoints = saving.open_checkpoints(checkpoint_directory, config.checkpoint)
        stack.enter_context(saving.closing_checkpoints(checkpoints))
        with _explaining_out_of_memory(config):
            state, start = _initial_state(run, checkpoints)
        if jax.process_index() == 0:
            workdirs.write_config(directory, experiment)
        workdirs.log_beginning(experiment, state, start, run.placement)
        tracking = stack.enter_context(tracked_run(config, directory, is_resumed=start > 0))
        missing = saving.evaluation_missing(checkpoints, start, experiment.eval_every)
        writer = make_writer(
            directory,
            steps_per_epoch=experiment.order.steps_per_epoch,
            total_steps=experiment.total_steps,
            resume_point=ResumePoint(start, missing),
            tracking=tracking,
        )
        progress = resume_early_stopping(config.early_stopping, directory / "metrics.jsonl")
        with metric_writers.ensure_flushes(writer):
            batches = stack.enter_context(contextlib.closing(run.train_batches(start)))
            with _explaining_out_of_memory(config):
                outcome = _take_steps(
                    run, state, start, batches, checkpoints, writer, screen, stop, progress
                )
        saving.finish_saving(checkpoints)
        if tracking is not None:
            tracking.interrupted = outcome.stopped_by is not None
        if outcome.stopped_by is None:
            log.info("finished %d steps", outcome.step)
        else:
            name, total = signal.Signals(outcome.stopped_by).name, experiment.total_steps
            message = "stopped by %s after step %d of %d; the same command resumes from there"
            log.info(message, name, outcome.step, total)
        workdirs.log_end(directory, checkpoints, config.data.eval)
        return dataclasses.replace(outcome, signal=stop.signal)


class _Run:
    """An experiment placed on this machine's devices, with its data."""

    def __init__(
        self,
        experiment: Experiment,
        placement: Placement,
        examples: data.Source,
        eval_examples: data.Source,
        options: data.LoaderOptions,
        pool: data.WorkerPool | None,
    ) -> None:
        config = experiment.config
        self.experiment, self.placement = experiment, placement
        self.examples, self.eval_examples = examples, eval_examples
        self.card = Card.of_run(config, experiment.architecture, examples.class_names)
        self.options, self.pool = options, pool
        self.broken_images = BrokenImageExchange(examples, config.data.max_broken)
        self.attention_metrics = make_attention_log(
            experiment, placement, eval_examples, options, pool
        )

    @property
    def local_rows(self) -> Sequence[int]:
        """This process's rows of the global batch."""
        return meshes.local_rows(self.placement.rows, self.experiment.config.batch_size)

    @functools.cached_property
    def teacher_params(self) -> tuple[Any, ...]:
        """The teacher's parameters on the devices, the last argument of a step; () without one."""
        return place_teacher(self.experiment, self.placement)

    def train_batches(self, start: int) -> Generator[data.Batch, None, None]:
        """Yield this process's rows of the batches of steps `start` + 1 to the last."""
        experiment = self.experiment
        yield from data.train_batches(
            self.examples,
            experiment.order,
            experiment.train_transform,
            start_step=start,
            num_steps=experiment.total_steps,
            rows=self.local_rows,
            options=self.options,
            pool=self.pool,
            broken_counter=self.broken_images.counter,
        )

    def eval_batches(self) -> Iterator[dict[str, jax.Array]]:
        """Yield the batches of an evaluation, on the devices."""
        config, rows = self.experiment.config, self.placement.rows
        broken_images = BrokenImageExchange(self.eval_examples, config.data.max_broken)
        batches = data.eval_batches(
            self.eval_examples,
            config.eval_batch_size,
            self.experiment.eval_transform,
            rows=meshes.local_rows(rows, config.eval_batch_size),
            options=self.options,
            pool=self.pool,
            broken_counter=broken_images.counter,
        )
        for batch in check_at_end(batches, broken_images):
            yield meshes.to_global(batch, rows, config.eval_batch_size)


def _initial_state(run: _Run, checkpoints: ocp.CheckpointManager) -> tuple[TrainState, int]:
    """Return the newest checkpoint's state or else a fresh one, and its number of steps."""
    experiment, sharding = run.experiment, run.placement.state
    state = restore_newest(checkpoints, experiment.abstract_state(), sharding)
    if state is not None:
        log.info("resuming after step %d from %s", state.step, checkpoints.directory)
        return state, int(state.step)
    config = experiment.config
    state = jax.jit(experiment.init_state, out_shardings=sharding)()
    if config.init_from:
        weights, class_names = open_weights(config.init_from), run.examples.class_names
        return warm_start(state, weights, experiment.architecture, class_names, sharding), 0
    log.info("starting from fresh parameters, seed %d", config.seed)
    return state, 0


def _take_steps(
    run: _Run,
    state: TrainState,
    start: int,
    batches: Iterator[data.Batch],
    checkpoints: ocp.CheckpointManager,
    writer: metric_writers.MetricWriter,
    screen: Screen,
    stop: StopRequest,
    progress: EarlyStopping,
) -> Outcome:
    """Run steps `start` + 1 to the last, with the evaluations and checkpoints due between them."""
    experiment, config = run.experiment, run.experiment.config
    total, placement = experiment.total_steps, run.placement
    clock, window = Clock(config.batch_size, total), MetricsWindow()
    utilisation = make_utilisation(experiment, placement.mesh)
    in_flight: collections.deque[Metrics] = collections.deque()
    profile = _profiler(config, checkpoints.directory.parent)
    evaluation: dict[str, float] | None = None

    def report(step: int) -> None:
        try:
            scalars = window.means(step)
        except NotFiniteError as error:
            raise _divergence_error(error, checkpoints) from error
        if scalars:
            scalars |= clock.lap(step)
            if "images_per_second" in scalars:
                scalars |= utilisation(scalars["images_per_second"])
            scalars["device_hours"] = placement.mesh.size * clock.hours()
            writer.write_scalars(step, {f"train/{name}": v for name, v in scalars.items()})

    def evaluate(step: int) -> dict[str, float]:
        nonlocal progress
        screen.show("evaluating", step, total)
        sums = sum_over_examples(
            lambda params, batch: placement.eval_step(params, batch, *run.teacher_params),
            state.eval_params,
            run.eval_batches(),
        )
        scalars = means(sums)
        progress = progress.after(step, scalars["accuracy"])
        written = scalars | progress.scalars()
        writer.write_scalars(step, {f"eval/{name}": v for name, v in written.items()})
        if config.attention_images:
            writer.write_scalars(step, run.attention_metrics(state.eval_params))
        return scalars

    if start == 0 and config.attention_images:
        writer.write_scalars(0, run.attention_metrics(state.eval_params))
    step, stopping = start, stop.reached(start)
    if not stopping and saving.evaluation_missing(checkpoints, start, experiment.eval_every):
        evaluation = evaluate(start)
    while step < total and not stopping and not progress.stops:
        with clock.waiting():
            local_batch = next(batches)
            batch = meshes.to_global(local_batch, placement.rows, config.batch_size)
        if step == 0 and jax.process_index() == 0:
            write_beginning(
                writer, experiment, local_batch, run.local_rows, run.examples.class_names
            )
        state, metrics = placement.train_step(state, batch, *run.teacher_params)
        step += 1
        if step == start + 1:
            clock.restart(step)  # exclude the compilation
        window.add(step, metrics)
        in_flight.append(metrics)
        if len(in_flight) > STEPS_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        profile(step)
        screen.show("training", step, total, duration_in_words(clock.seconds_left(step)))
        # Metrics are reported one step late, when they are available without waiting.
        if (step - 1) % experiment.log_every == 0:
            report(step - 1)
            run.broken_images.check()
        is_last, stopping = step == total, stop.reached(step)
        # After a stop signal there is little time: a due evaluation is left to the resumed run.
        evaluating = is_last or (step % experiment.eval_every == 0 and not stopping)
        saving_now = is_last or step % experiment.checkpoint_every == 0 or stopping
        if not (evaluating or saving_now):
            continue
        report(step)
        with clock.paused():
            run.broken_images.check_now()
            accuracy = None
            if evaluating:
                evaluation = evaluate(step)
                accuracy = evaluation["accuracy"]
            writer.flush()  # before the checkpoint from which a killed run would resume
            saving_now = saving_now or progress.stops
            if saving_now or saving.is_best(checkpoints, config.checkpoint, accuracy):
                start_time = time.monotonic()
                record = DataRecord(
                    experiment.order.num_examples,
                    run.broken_images.indices,
                    "" if experiment.teacher is None else experiment.teacher.digest,
                )
                saving.save(checkpoints, state, step, config, run.card, accuracy, record)
                stall = time.monotonic() - start_time
                writer.write_scalars(step, {"checkpoint/stall_seconds": stall})
    if progress.stops:
        log.info("the run ends after step %d of %d: %s", step, total, progress)
    ended = step == total or progress.stops
    return Outcome(step, None if ended else stop.signal, evaluation)


def _profiler(config: Config, directory: epath.Path) -> Callable[[int], Any]:
    """Return a function of the step that profiles the steps that the config asks for."""
    if not config.profile_at:
        return lambda step: None
    return periodic_actions.Profile(
        logdir=directory,
        first_profile=config.profile_at,
        num_profile_steps=NUM_PROFILED_STEPS,
        profile_duration_ms=0,
        every_secs=None,
    )


@contextlib.contextmanager
def _explaining_out_of_memory(config: Config) -> Iterator[None]:
    """Raise RunError with advice if a step does not fit in the devices' memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = " ".join(str(error).split())[:200]
        advice = memory_advice(config, jax.device_count())
        raise RunError(f"the step does not fit the devices' memory: {advice} ({line})") from error


def _divergence_error(error: NotFiniteError, checkpoints: ocp.CheckpointManager) -> RunError:
    latest, metrics = checkpoints.latest_step(), error.metrics
    checkpoint_note = f"the checkpoint of step {latest} is good"
    if latest is None:
        checkpoint_note = "no checkpoint was saved before"
    return RunError(
        f"loss {metrics['loss']:g}, gradient norm {metrics['gradient_norm']:g} at step "
        f"{error.step} (learning rate {metrics['learning_rate']:.3g}): no longer finite numbers, "
        f"so the run stops; {checkpoint_note}. Try a smaller config.optimizer.learning_rate, a "
        "longer config.optimizer.warmup, or config.optimizer.clip_norm=1"
    )
