"""TPU slices by name: how many chips, how they are wired, what a chip can do."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from convit_jax.errors import InputError, first_line, nearest
from convit_jax.planning import schedules


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a generation, as Google Cloud documents it.

    Attributes:
        hbm_bytes: memory.
        peak_flops: bfloat16 multiplications and additions a second.
        flops_per_cycle: the same in one cycle, by the number and size of its matrix units.
        dimensions: of the torus or mesh that chips form.
        cores_in_name: by how many cores a chip counts in a slice's name: v4-8 has four chips.
        options: what the compiler is told besides the shape.
    """

    hbm_bytes: int
    peak_flops: float
    flops_per_cycle: int
    dimensions: int
    cores_in_name: int
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peak_flops / self.flops_per_cycle


_GIB = 2**30
# A core's four matrix units of 128 x 128, each a multiplication and an addition a cycle; v4 and v5p
# have two cores, and v6e larger units. The compiler's cycles for a large product agree.
_UNITS = 4 * 128 * 128 * 2
CHIPS = {
    # A v4 chip's two cores work as one, as JAX uses them.
    "v4": Chip(32 * _GIB, 275e12, 2 * _UNITS, 3, 2, {"chip_config_name": "megacore"}),
    "v5e": Chip(16 * _GIB, 197e12, _UNITS, 2, 1),
    "v5p": Chip(95 * _GIB, 459e12, 2 * _UNITS, 3, 2),
    "v6e": Chip(32 * _GIB, 918e12, 4 * _UNITS, 2, 1),
}

# Shapes of the slices that are offered, by their number of chips.
_SHAPES = {
    2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
# Eight chips of a mesh are offered in one host; the compiler would take two hosts of four, as in
# larger slices.
_ONE_HOST = {"2x4": {"chips_per_host_bounds": [2, 4, 1]}}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
        name: as it was asked for.
        generation: key of `CHIPS`.
        shape: chips along each axis, "4x4x4".
    """

    name: str
    generation: str
    shape: str

    @property
    def chip(self) -> Chip:
        """What each chip can do."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(map(int, self.shape.split("x")))

    def devices(self) -> list[Any]:
        """The devices to compile for.

        Raises:
            InputError: the TPU compiler is not installed, or knows no such slice.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(
                "planning takes the TPU compiler, which runs anywhere: pip install libtpu"
            )
        # Set before it is loaded: there is no TPU to ask about itself, or to keep others from.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        schedules.record()
        from jax.experimental import topologies  # noqa: PLC0415

        try:
            with _without_remarks():
                described = topologies.get_topology_desc(
                    platform="tpu",
                    topology_name=f"{self.generation}:{self.shape}",
                    **self.chip.options,
                    **_ONE_HOST.get(self.shape, {}),
                )
        except RuntimeError as error:
            line = first_line(error)
            known = [
                each.shape for each in TOPOLOGIES.values() if each.generation == self.generation
            ]
            raise InputError(
                f"--topology={self.name}: the TPU compiler knows no such slice ({line}); those of "
                f"{self.generation} that are offered: {', '.join(known)}"
            ) from error
        return list(described.devices)


def _named() -> dict[str, Topology]:
    found = {}
    for generation, chip in CHIPS.items():
        for shape in _SHAPES[chip.dimensions]:
            chips = math.prod(map(int, shape.split("x")))
            name = f"{generation}-{chips * chip.cores_in_name}"
            found[name] = Topology(name, generation, shape)
    return found


TOPOLOGIES = _named()


def find_topology(name: str) -> Topology:
    """The slice of a name, `v5e-256`, or of a generation and shape, `v4:4x4x4`.

    Google Cloud's own `v5litepod-256` is `v5e-256`.

    Raises:
        InputError: an unknown name, generation or shape.
    """
    known = name.replace("v5litepod-", "v5e-")
    if known in TOPOLOGIES:
        return TOPOLOGIES[known]
    generation, mark, rest = re.fullmatch(r"([^-:]*)([-:]?)(.*)", known).groups()
    if generation not in CHIPS or mark != ":":
        close = nearest(known, TOPOLOGIES) if generation in CHIPS else nearest(generation, CHIPS)
        raise InputError(
            f"--topology={name}: no such slice; there are {', '.join(TOPOLOGIES)}, and others by "
            f"their shape, such as v4:2x4x8: {close}"
        )
    dimensions = CHIPS[generation].dimensions
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), rest):
        example = _SHAPES[dimensions][3]
        raise InputError(
            f"--topology={name}: expected {generation}:{example} or another such shape"
        )
    return Topology(name, generation, rest)


def describe_topologies() -> str:
    """A line for each generation, of the names of its slices and the shapes they have."""
    lines = ["Slices by name, and the shape that each has; another shape is asked for as v4:2x4x8:"]
    for generation in CHIPS:
        named = (each for each in TOPOLOGIES.values() if each.generation == generation)
        lines.append(", ".join(f"{each.name} ({each.shape})" for each in named))
    return "\n".join(lines)


@contextlib.contextmanager
def _without_remarks() -> Any:
    """Keeps what the compiler's library says of the missing TPU, on descriptor 2, to itself."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
