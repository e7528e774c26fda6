"""The run: from a config and a workdir to a trained model, resuming what was begun."""

import collections
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from clu import metric_writers, periodic_actions
from etils import epath

from convit_jax import data
from convit_jax.config import Config
from convit_jax.console.screen import Screen, duration_in_words
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.broken_images import BrokenTogether, checked
from convit_jax.distributed.processes import screen_of_process
from convit_jax.errors import RunError
from convit_jax.evaluation.sums import means, sum_over_examples
from convit_jax.training import checkpoints as saving
from convit_jax.training import workdir as workdirs
from convit_jax.training.agreement import check_same_data, check_same_workdir
from convit_jax.training.attention_log import make_attention_log
from convit_jax.training.clock import Clock
from convit_jax.training.examples import open_training_data
from convit_jax.training.experiment import PROFILED_STEPS, Experiment, make_experiment
from convit_jax.training.placement import Placement, memory_advice, place
from convit_jax.training.reporting import Reported, make_writer
from convit_jax.training.resumption import check_same_run
from convit_jax.training.signals import StopRequest, stop_on_signals
from convit_jax.training.step import Metrics, TrainState
from convit_jax.training.warm_start import warm_start
from convit_jax.training.window import MetricsWindow, NotFiniteError
from convit_jax.weights import Card, open_weights

log = logging.getLogger(__name__)

# Steps that may be in flight before the host waits: enough to keep the devices busy, few enough
# that the batches waiting on them do not fill their memory.
STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: steps done.
        stopped_by: number of the signal that ended it early, or None.
        evaluation: the last evaluation's metrics, if there was one.
        signal: number of the signal that asked it to end, be it too late to end it early, or None.
    """

    step: int
    stopped_by: int | None
    evaluation: dict[str, float] | None
    signal: int | None = None


def train(config: Config, workdir: str, screen: Screen | None = None) -> Outcome:
    """Trains, evaluates and checkpoints, from the workdir's newest checkpoint if it has one.

    Args:
        config: the experiment.
        workdir: directory for the run, made if it is not there; `gs://` is fine.
        screen: where progress is shown, one that is in use; None for one of its own.

    Returns:
        How it ended: at its last step, or earlier by SIGTERM or Ctrl-C with the state saved.

    Raises:
        InputError: the config, the data, the devices or the workdir do not fit together.
        RunError: the loss is no longer a number, or a checkpoint cannot be written or read.
    """
    with contextlib.ExitStack() as stack:
        screen = screen or stack.enter_context(screen_of_process())
        stop = stack.enter_context(stop_on_signals())
        directory = workdirs.open_workdir(workdir)
        stack.enter_context(workdirs.claimed(directory))
        check_same_workdir(directory)
        examples, eval_examples = open_training_data(config)
        check_same_data(examples, "data.train")
        check_same_data(eval_examples, "data.eval")
        mesh = meshes.create_mesh(config.mesh.fsdp)
        experiment = make_experiment(
            config, num_examples=len(examples), num_classes=len(examples.class_names), mesh=mesh
        )
        run = _Run.make(experiment, place(experiment, mesh), examples, eval_examples)
        kept = directory / "checkpoints"
        check_same_run(kept, config, examples.class_names, len(examples))
        checkpoints = saving.open_checkpoints(kept, config.checkpoint)
        stack.enter_context(saving.closed_at_the_end(checkpoints))
        with _out_of_memory_told(config):
            state, start = _first_state(run, checkpoints)
        if jax.process_index() == 0:
            workdirs.write_config(directory, experiment)
        workdirs.log_beginning(experiment, state, start, run.placed)
        writer = make_writer(
            directory,
            steps_per_epoch=experiment.order.steps_per_epoch,
            total_steps=experiment.total_steps,
            before=Reported(start, run.owes_evaluation(checkpoints, start)),
        )
        with metric_writers.ensure_flushes(writer):
            batches = stack.enter_context(contextlib.closing(run.train_batches(start)))
            with _out_of_memory_told(config):
                outcome = _take_steps(run, state, start, batches, checkpoints, writer, screen, stop)
        saving.finish_saving(checkpoints)
        if outcome.stopped_by is None:
            log.info("finished %d steps", outcome.step)
        else:
            log.info(
                "stopped by %s after step %d of %d; the same command goes on from there",
                stop.signal.name,
                outcome.step,
                experiment.total_steps,
            )
        workdirs.log_end(directory, checkpoints)
        return dataclasses.replace(outcome, signal=stop.signal)


@dataclasses.dataclass(frozen=True)
class _Run:
    """An experiment with its data, placed on this machine's devices."""

    experiment: Experiment
    placed: Placement
    card: Card
    broken: BrokenTogether
    train_batches: Callable[[int], Iterator[data.Batch]]
    eval_batches: Callable[[], Iterator[dict[str, jax.Array]]]
    log_attention: Callable[[Any], dict[str, float]]

    @classmethod
    def make(
        cls,
        experiment: Experiment,
        placed: Placement,
        examples: data.Source,
        eval_examples: data.Source,
    ) -> "_Run":
        config = experiment.config
        reading = data.LoaderOptions(
            config.data.num_workers,
            config.data.prefetch_batches,
            config.data.max_broken,
            config.data.exif_rotation,
        )
        broken = BrokenTogether(examples, config.data.max_broken)

        def train_batches(start: int) -> Iterator[data.Batch]:
            return data.train_batches(
                examples,
                experiment.order,
                experiment.train_transform,
                start_step=start,
                num_steps=experiment.total_steps,
                rows=meshes.local_rows(placed.rows, config.batch_size),
                options=reading,
                broken_counter=broken.health,
            )

        def eval_batches() -> Iterator[dict[str, jax.Array]]:
            broken = BrokenTogether(eval_examples, config.data.max_broken)
            batches = data.eval_batches(
                eval_examples,
                config.eval_batch_size,
                experiment.eval_transform,
                rows=meshes.local_rows(placed.rows, config.eval_batch_size),
                options=reading,
                broken_counter=broken.health,
            )
            for batch in checked(batches, broken):
                yield meshes.to_global(batch, placed.rows, config.eval_batch_size)

        return cls(
            experiment=experiment,
            placed=placed,
            card=Card.of_run(config, experiment.architecture, examples.class_names),
            broken=broken,
            train_batches=train_batches,
            eval_batches=eval_batches,
            log_attention=make_attention_log(experiment, placed, eval_examples, reading),
        )

    def owes_evaluation(self, checkpoints: ocp.CheckpointManager, start: int) -> bool:
        """Whether the run that goes on after `start` steps was stopped before it evaluated."""
        return saving.owes_evaluation(checkpoints, start, self.experiment.eval_every)


def _first_state(run: _Run, checkpoints: ocp.CheckpointManager) -> tuple[TrainState, int]:
    """The newest checkpoint's state or else a fresh one, and the steps it has done."""
    on_devices = run.placed.state
    state = saving.restore_newest(checkpoints, run.experiment.abstract_state(), on_devices)
    if state is not None:
        log.info("resuming after step %d from %s", state.step, checkpoints.directory)
        return state, int(state.step)
    config = run.experiment.config
    state = jax.jit(run.experiment.init_state, out_shardings=on_devices)()
    if config.init_from:
        warm = warm_start(state, open_weights(config.init_from), run.card, on_devices)
        return warm, 0
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
) -> Outcome:
    """Steps `start` + 1 to the last, with what is due between them."""
    experiment, config = run.experiment, run.experiment.config
    total, placed = experiment.total_steps, run.placed
    clock, window = Clock(config.batch_size, total), MetricsWindow()
    in_flight: collections.deque[Metrics] = collections.deque()
    profile = _profiler(config, checkpoints.directory.parent)
    evaluation: dict[str, float] | None = None

    def report(step: int) -> None:
        try:
            means = window.means(step)
        except NotFiniteError as error:
            raise _diverged(error, checkpoints) from error
        if means:
            scalars = means | clock.lap(step)
            writer.write_scalars(step, {f"train/{name}": v for name, v in scalars.items()})

    def evaluate(step: int) -> dict[str, float]:
        screen.show("evaluating", step, total)
        sums = sum_over_examples(placed.eval_step, state.eval_params, run.eval_batches())
        found = means(sums)
        writer.write_scalars(step, {f"eval/{k}": v for k, v in found.items()})
        if config.attention_images:
            writer.write_scalars(step, run.log_attention(state.eval_params))
        return found

    if start == 0 and config.attention_images:
        writer.write_scalars(0, run.log_attention(state.eval_params))
    step, stopping = start, stop.reached(start)
    if not stopping and run.owes_evaluation(checkpoints, start):
        evaluation = evaluate(start)
    while step < total and not stopping:
        with clock.waiting():
            batch = meshes.to_global(next(batches), placed.rows, config.batch_size)
        state, metrics = placed.train_step(state, batch)
        step += 1
        if step == start + 1:
            clock.restart(step)  # it compiled
        window.add(step, metrics)
        in_flight.append(metrics)
        if len(in_flight) > STEPS_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        profile(step)
        screen.show("training", step, total, duration_in_words(clock.seconds_left(step)))
        # A line is written one step late, when its numbers are there without waiting.
        if (step - 1) % experiment.log_every == 0:
            report(step - 1)
            run.broken.check()
        last, stopping = step == total, stop.reached(step)
        # Who is asked to stop has little time: what is due is evaluated when the run goes on.
        evaluating = last or (step % experiment.eval_every == 0 and not stopping)
        saving_now = last or step % experiment.checkpoint_every == 0 or stopping
        if not (evaluating or saving_now):
            continue
        report(step)
        with clock.paused():
            run.broken.check_now()
            accuracy = None
            if evaluating:
                evaluation = evaluate(step)
                accuracy = evaluation["accuracy"]
            writer.flush()  # before the checkpoint with which a killed run would go on
            if saving_now or saving.is_best(checkpoints, config.checkpoint, accuracy):
                began = time.monotonic()
                saving.save(
                    checkpoints,
                    state,
                    step,
                    config,
                    run.card,
                    accuracy,
                    experiment.order.num_examples,
                )
                stall = time.monotonic() - began
                writer.write_scalars(step, {"checkpoint/stall_seconds": stall})
    return Outcome(step, stop.signal if step < total else None, evaluation)


def _profiler(config: Config, directory: epath.Path) -> Callable[[int], Any]:
    """A function of the step that profiles the steps asked for."""
    if not config.profile_at:
        return lambda step: None
    return periodic_actions.Profile(
        logdir=directory,
        first_profile=config.profile_at,
        num_profile_steps=PROFILED_STEPS,
        profile_duration_ms=0,
        every_secs=None,
    )


@contextlib.contextmanager
def _out_of_memory_told(config: Config) -> Iterator[None]:
    """Raises RunError where the devices' memory does not hold a step."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = " ".join(str(error).split())[:200]
        advice = memory_advice(config, jax.device_count())
        raise RunError(f"the step does not fit the devices' memory: {advice} ({line})") from error


def _diverged(error: NotFiniteError, checkpoints: ocp.CheckpointManager) -> RunError:
    kept, metrics = checkpoints.latest_step(), error.metrics
    return RunError(
        f"loss {metrics['loss']:g}, gradient norm {metrics['gradient_norm']:g} at step "
        f"{error.step} (learning rate {metrics['learning_rate']:.3g}): no longer finite numbers, "
        "so the run stops; "
        + (
            "no checkpoint was saved before"
            if kept is None
            else f"the checkpoint of step {kept} is good"
        )
        + ". Try a smaller config.optimizer.learning_rate, a longer config.optimizer.warmup, or "
        "config.optimizer.clip_norm=1"
    )
