"""Trains the same run on one device, on eight, and in two processes of four, and draws the losses:

    python scripts/compare_devices.py OUT

OUT gets the three workdirs and `devices.png`, the figure of docs/tpu.md. The devices are made of
this machine's CPU. The runs are the demo's for twenty epochs; the eight devices are a mesh of
8 x 1, the two processes one of 4 x 2, with the parameters spread over pairs.
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
RUNS = {
    "1 device": (1, 1, 1),
    "8 devices": (1, 8, 1),
    "2 processes of 4 devices, parameters in pairs": (2, 4, 2),
}


def train(workdir: pathlib.Path, processes: int, devices: int, fsdp: int) -> None:
    """Trains with so many processes of so many devices each, the parameters over groups of `fsdp`.

    Raises:
        CalledProcessError: one of them failed.
    """
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += ["--config.train_for=20 epochs", "--config.log_every=5 steps"]
    command += [f"--config.mesh.fsdp={fsdp}"]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    running = []
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
    """Steps and training losses of a run."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    told = [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]
    steps, values = zip(*told, strict=True)
    return np.array(steps), np.array(values)


def draw(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Losses above, and below them how far each run is from the first."""
    figure = Figure(figsize=(6.8, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    looks = {"lw": (5, 2.5, 1), "color": ("#9ecae1", "#31688e", "black")}
    first = next(iter(found.values()))[1]
    for number, (name, (steps, values)) in enumerate(found.items()):
        look = {key: choices[number] for key, choices in looks.items()}
        above.plot(steps, values, label=name, **look)
        if number:
            below.plot(steps, np.maximum(abs(values / first - 1), 1e-9), **look)
    above.set(ylabel="training loss")
    above.legend(frameon=False)
    below.set(xlabel="step", ylabel="relative\ndifference", yscale="log", ylim=(5e-10, 1e-2))
    return figure


def main(out: pathlib.Path) -> None:
    """Trains what is not there yet, then draws."""
    for name, (processes, devices, fsdp) in RUNS.items():
        train(out / name.split(",")[0].replace(" ", "_"), processes, devices, fsdp)
    found = {name: losses(out / name.split(",")[0].replace(" ", "_")) for name in RUNS}
    for name, (_, values) in found.items():
        print(f"{name}: last loss {values[-1]:.6f}")
    draw(found).savefig(out / "devices.png", dpi=200)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
