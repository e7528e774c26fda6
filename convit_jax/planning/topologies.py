"""TPU slices by name: number of chips, shape of their interconnect, and what a chip can do."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator

import jax
from jax.experimental import topologies

from convit_jax.errors import InputError, first_line, nearest
from convit_jax.planning import schedules
from convit_jax.system.peak_flops import TPU_PEAKS


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a TPU generation, as documented by Google Cloud.

    Attributes:
        hbm_bytes: size of the memory.
        peak_flops: bfloat16 multiplications and additions per second.
        flops_per_cycle: the same per cycle, from the number and size of the matrix units.
        dimensions: of the torus or mesh that the chips form.
        cores_in_name: cores per chip in a slice's name: v4-8 has four chips.
        options: compiler options besides the shape.
    """

    hbm_bytes: int
    peak_flops: float
    flops_per_cycle: int
    dimensions: int
    cores_in_name: int
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.peak_flops / self.flops_per_cycle


_GIB = 2**30
# A core has four matrix units of 128 x 128, each with a multiplication and an addition per cycle;
# v4 and v5p have two cores, v6e has larger units. The compiler's cycles for a large matrix product
# agree with this.
_FLOPS_PER_CORE = 4 * 128 * 128 * 2
CHIPS = {
    # JAX uses the two cores of a v4 chip as one.
    "v4": Chip(
        32 * _GIB, TPU_PEAKS["TPU v4"], 2 * _FLOPS_PER_CORE, 3, 2, {"chip_config_name": "megacore"}
    ),
    "v5e": Chip(16 * _GIB, TPU_PEAKS["TPU v5e"], _FLOPS_PER_CORE, 2, 1),
    "v5p": Chip(95 * _GIB, TPU_PEAKS["TPU v5p"], 2 * _FLOPS_PER_CORE, 3, 2),
    "v6e": Chip(32 * _GIB, TPU_PEAKS["TPU v6e"], 4 * _FLOPS_PER_CORE, 2, 1),
}

# Shapes of the slices that Google Cloud offers, by the number of dimensions.
_SHAPES = {
    2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
# A mesh of eight chips is offered on one host; the compiler's default is two hosts of four chips,
# as in larger slices.
_HOST_BOUNDS = {"2x4": {"chips_per_host_bounds": [2, 4, 1]}}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice.

    Attributes:
        name: as requested.
        generation: key of `CHIPS`.
        shape: number of chips along each axis, "4x4x4".
    """

    name: str
    generation: str
    shape: str

    @property
    def chip(self) -> Chip:
        """Properties of each chip."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return _num_chips(self.shape)

    def devices(self) -> list[jax.Device]:
        """Return the devices to compile for.

        Raises:
            InputError: the TPU compiler is not installed, or has no such slice.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(
                "planning needs the TPU compiler, which runs on any Linux: pip install libtpu"
            )
        # These must be set before libtpu is loaded. No metadata server describes a TPU here, and
        # no TPU has to be locked against other processes.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        schedules.enable_dumps()
        try:
            with _stderr_silenced():
                description = topologies.get_topology_desc(
                    platform="tpu",
                    topology_name=f"{self.generation}:{self.shape}",
                    **self.chip.options,
                    **_HOST_BOUNDS.get(self.shape, {}),
                )
        except RuntimeError as error:
            shapes = ", ".join(_SHAPES[self.chip.dimensions])
            raise InputError(
                f"--topology={self.name}: the TPU compiler has no such slice "
                f"({first_line(error)}); shapes offered for {self.generation}: {shapes}"
            ) from error
        return list(description.devices)


def _num_chips(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))


def _offered_topologies() -> dict[str, Topology]:
    offered = {}
    for generation, chip in CHIPS.items():
        for shape in _SHAPES[chip.dimensions]:
            name = f"{generation}-{_num_chips(shape) * chip.cores_in_name}"
            offered[name] = Topology(name, generation, shape)
    return offered


TOPOLOGIES = _offered_topologies()


def find_topology(name: str) -> Topology:
    """Return the slice of a name, `v5e-256`, or of a generation and shape, `v4:4x4x4`.

    Google Cloud's own name `v5litepod-256` is accepted for `v5e-256`.

    Raises:
        InputError: an unknown name, generation or shape.
    """
    canonical = name.replace("v5litepod-", "v5e-")
    if canonical in TOPOLOGIES:
        return TOPOLOGIES[canonical]
    generation = re.split("[-:]", canonical)[0]
    shape = canonical.removeprefix(f"{generation}:")
    if generation not in CHIPS or shape == canonical:
        is_known = generation in CHIPS
        suggestion = nearest(canonical, TOPOLOGIES) if is_known else nearest(generation, CHIPS)
        raise InputError(
            f"--topology={name}: no such slice; there are {', '.join(TOPOLOGIES)}, and others by "
            f"shape, such as v4:2x4x8: {suggestion}"
        )
    dimensions = CHIPS[generation].dimensions
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), shape):
        example = _SHAPES[dimensions][3]
        raise InputError(
            f"--topology={name}: expected {generation}:{example} or another shape of "
            f"{dimensions} dimensions"
        )
    return Topology(name, generation, shape)


def describe_topologies() -> str:
    """Return a line for each generation, with the names and shapes of its slices."""
    lines = ["Slices by name, with their shapes; request another shape as in v4:2x4x8:"]
    for generation in CHIPS:
        offered = (t for t in TOPOLOGIES.values() if t.generation == generation)
        lines.append(", ".join(f"{t.name} ({t.shape})" for t in offered))
    return "\n".join(lines)


@contextlib.contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Discard what libtpu writes to file descriptor 2 about the missing TPU."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as devnull:  # noqa: PTH123
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
