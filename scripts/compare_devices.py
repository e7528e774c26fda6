"""Train the same run on 1 device, on 8, and in 2 processes of 4 devices, and plot the losses:

    python scripts/compare_devices.py OUT

Writes the three workdirs and `devices.png`, the figure of docs/tpu.md, to OUT. The devices are
virtual ones on this machine's CPU. The run is the demo's, for twenty epochs; the mesh is 8 x 1 for
the eight devices, and 4 x 2 for the two processes, with the parameters spread over pairs.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent
# Name → (processes, devices per process, fsdp).
RUNS = {
    "1 device": (1, 1, 1),
    "8 devices": (1, 8, 1),
    "2 processes of 4 devices, parameters in pairs": (2, 4, 2),
}


def train(workdir: pathlib.Path, processes: int, devices: int, fsdp: int) -> None:
    """Train in several processes with several devices each, and parameters over `fsdp` devices.

    Raises:
        CalledProcessError: a process failed.
    """
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += ["--config.train_for=20 epochs", "--config.log_every=5 steps"]
    command += [f"--config.mesh.fsdp={fsdp}"]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    running: list[subprocess.Popen[bytes]] = []
    for index in range(processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    codes = [process.wait() for process in running]
    if any(codes):
        raise subprocess.CalledProcessError(max(codes), command)


def losses(workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and training losses of a run."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    pairs = [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]
    steps, values = zip(*pairs, strict=True)
    return np.array(steps), np.array(values)


def plot(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Plot the losses above, and the relative difference of each run from the first below."""
    figure = Figure(figsize=(6.8, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    widths, colours = (5, 2.5, 1), ("#9ecae1", "#31688e", "black")
    _, reference = next(iter(curves.values()))
    for i, (name, (steps, values)) in enumerate(curves.items()):
        above.plot(steps, values, label=name, lw=widths[i], color=colours[i])
        if i:
            difference = np.maximum(abs(values / reference - 1), 1e-9)
            below.plot(steps, difference, lw=widths[i], color=colours[i])
    above.set(ylabel="training loss")
    above.legend(frameon=False)
    below.set(xlabel="step", ylabel="relative\ndifference", yscale="log", ylim=(5e-10, 1e-2))
    return figure


def main(out: pathlib.Path) -> None:
    """Train or resume the runs, then plot them."""
    workdirs = {name: out / name.split(",")[0].replace(" ", "_") for name in RUNS}
    for name, (processes, devices, fsdp) in RUNS.items():
        train(workdirs[name], processes, devices, fsdp)
    curves = {name: losses(workdir) for name, workdir in workdirs.items()}
    for name, (_, values) in curves.items():
        print(f"{name}: last loss {values[-1]:.6f}")
    plot(curves).savefig(out / "devices.png", dpi=200)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
