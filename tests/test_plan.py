"""python -m convit_jax.plan: the TPU compiler runs here, a TPU does not."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from convit_jax.errors import InputError
from convit_jax.models import architecture, forward_flops
from convit_jax.planning.program import read_cost
from convit_jax.planning.schedules import count_cycles
from convit_jax.planning.topologies import (
    CHIPS,
    TOPOLOGIES,
    describe_topologies,
    find_topology,
)
from convit_jax.training.placement import memory_advice

compiler_only = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)

SMALL = [
    "--config.model.num_heads=4", "--config.model.head_dim=16", "--config.model.depth=2",
    "--config.model.gpsa_layers=1", "--config.model.patch_size=8",
    "--config.eval_batch_size=64",
]  # fmt: skip


def plan(repository, *arguments, image_size=32, batch_size=64):
    """The command, with the optimisations that other tests do without."""
    arguments += f"--config.data.image_size=({image_size},)", f"--config.batch_size={batch_size}"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    command = [sys.executable, "-m", "convit_jax.plan", "--config=configs/convit_ti.py"]
    return subprocess.run(
        [*command, *SMALL, *arguments],
        cwd=repository, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@compiler_only
def test_a_run_is_planned_on_a_slice_that_is_not_there(repository):
    """Spread in pairs, accumulated: what is printed adds up."""
    done = plan(
        repository, "--topology=v5e-4", "--json", "--config.mesh.fsdp=2",
        "--config.optimizer.accumulate=2", "--config.ema_decay=0.9", "--classes=10",
        "--examples=6400", "--config.augment.repeats=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["chips"], found["hosts"], found["mesh"]) == (4, 1, [2, 2])
    assert (found["batch_size"], found["batch_per_chip"]) == (64, 16)
    assert found["fits"]
    # Two moments and the running average of each parameter, and a few counters.
    assert found["optimizer_bytes"] == pytest.approx(3 * found["parameter_bytes"], abs=64)
    parts = ("parameter_bytes", "optimizer_bytes", "temporary_bytes", "other_bytes")
    assert all(found[part] > 0 for part in parts)
    assert found["total_bytes"] == sum(found[part] for part in parts) < found["hbm_bytes"]
    assert "nothing was run" in found["estimates"]
    kinds = {kind for kind, _, _ in found["collectives"]}
    assert {"all-reduce", "all-gather"} <= kinds
    assert found["cycles"] > 10_000
    # Two layers, forward and backward, twice.
    assert (found["custom_kernels"], found["unknown_kernels"]) == (8, 0)
    assert 0 < found["custom_cycles"] < found["cycles"]
    seconds = 64 / found["images_per_second"]
    assert seconds == pytest.approx(found["cycles"] / CHIPS["v5e"].clock)
    assert found["hours"] == pytest.approx(300 * 100 * seconds / 3600)
    assert found["images_per_second_per_host"] == found["images_per_second"]
    # A forward pass and twice that backward, whatever the kernels and the two parts do of it.
    made = architecture(
        "convit_tiny", num_classes=10, image_size=32, num_heads=4, head_dim=16, depth=2,
        gpsa_layers=1, patch_size=8,
    )  # fmt: skip
    assert found["gflops_per_image"] == pytest.approx(3 * forward_flops(made) / 1e9)
    share = 1e9 * found["gflops_per_image"] * 16 / seconds / CHIPS["v5e"].peak_flops
    assert found["mfu"] == pytest.approx(share)


# In a process of its own: once the TPU compiler is loaded, JAX's profiler, which other tests use,
# looks for a TPU and crashes.
CYCLES = """
import json
import jax, jax.numpy as jnp
from convit_jax.planning.program import read_cost
from convit_jax.planning.schedules import count_cycles
from convit_jax.planning.topologies import CHIPS, find_topology

found = {}
for generation, chip in CHIPS.items():
    topology = find_topology(f"{generation}-{4 * chip.cores_in_name}")
    devices = topology.devices()
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    matrix = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=sharding)
    compiled = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    rate = 2 * 4096**3 / read_cost(compiled.as_text()).cycles
    found[generation] = [len(devices), topology.chips, rate / chip.flops_per_cycle]
hosts = {
    name: len({device.process_index for device in find_topology(name).devices()})
    for name in ("v5e-4", "v5e-8", "v6e-8", "v5e-16", "v4-16")
}
print(json.dumps([found, hosts]))
"""


@compiler_only
def test_the_compilers_devices_are_chips_and_its_cycles_agree_with_the_matrix_units(repository):
    """A large product runs at nearly, and never above, what the units can do in a cycle.

    Hosts have four chips, but eight where a mesh of eight is the whole slice.
    """
    done = subprocess.run(
        [sys.executable, "-c", CYCLES], cwd=repository, capture_output=True, text=True, check=True
    )
    found, hosts = json.loads(done.stdout.splitlines()[-1])
    assert hosts == {"v5e-4": 1, "v5e-8": 1, "v6e-8": 1, "v5e-16": 4, "v4-16": 2}
    assert found.keys() == CHIPS.keys()
    for devices, chips, share in found.values():
        assert devices == chips == 4
        assert 0.8 < share <= 1.0


@compiler_only
def test_what_does_not_fit_says_so_and_what_helps(repository):
    """Two layers of 224 pixels, 65,536 images a chip."""
    done = plan(
        repository, "--topology=v5e-4", "--json", "--config.model.remat=true",
        image_size=224, batch_size=262144,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["fits"]
    told = re.fullmatch(
        r"too large for a chip's memory by (\d+\.\d\d) GiB: try a smaller config.batch_size, "
        r"a larger config.optimizer.accumulate or a larger config.mesh.fsdp",
        found["problem"],
    )
    assert told, found["problem"]
    # 15.75 GiB of the chip's 16 are there to be used.
    assert found["total_bytes"] / 2**30 - 15.75 == pytest.approx(float(told[1]), abs=0.01)


def test_what_is_on_already_is_not_advised(make_config):
    config = make_config()
    assert memory_advice(config, 4).startswith("try --config.model.remat=true, a smaller")
    assert memory_advice(config, 4).endswith("accumulate or a larger config.mesh.fsdp")
    assert "fsdp" not in memory_advice(config, 1)


@pytest.mark.parametrize(
    ("largest", "tried", "told"),
    [
        (64, [64, 128, 96, 80, 72], "fits: 64, 16 a chip (72 does not)."),
        (80, [64, 128, 96, 80, 88], "(88 does not)."),
        (
            88,
            [64, 128, 96, 80, 88],
            "(96 does not). Of those tried, 80 takes the most images/s: 2.",
        ),
        (100, [64, 128, 96, 112, 104], "fits: 96, 24 a chip (104 does not)"),
        (330, [64, 128, 256, 512, 384, 320, 352], "fits: 320, 80 a chip (352 does not)"),
        (20, [64, 32, 16, 24], "fits: 16, 4 a chip (24 does not)"),
        (9, [64, 32, 16, 8], "fits: 8, 2 a chip (16 does not)"),
        (7, [64, 32, 16, 8], "No batch fits: 8, the smallest tried, does not."),
        (10**6, [64 * 2**n for n in range(8)], "fits: 8,192, 2,048 a chip (larger ones were"),
    ],
)
def test_a_sweep_narrows_down_the_largest_batch(largest, tried, told, monkeypatch):
    """8 is the least that four chips take in pairs."""
    from convit_jax import plan as command
    from convit_jax.config import resolve

    def judged(config, topology, **options):
        size = config.batch_size
        assert config.eval_batch_size == size
        return SimpleNamespace(
            fits=size <= largest,
            batch_size=size,
            chips=topology.chips,
            images_per_second=float(size <= largest) + (size == 80),
        )

    monkeypatch.setattr(command, "make_plan", judged)
    config = resolve({"batch_size": 64, "eval_batch_size": 64})
    plans = list(command.sweep(config, find_topology("v5e-4"), examples=100, classes=10))
    assert [plan.batch_size for plan in plans] == tried
    assert told in command.describe_largest(plans)


def test_names_and_shapes():
    assert find_topology("v4-128") == TOPOLOGIES["v4-128"]
    assert (find_topology("v4-128").shape, find_topology("v4-128").chips) == ("4x4x4", 64)
    assert find_topology("v5p:2x2x4").chips == 16
    assert find_topology("v6e-256").shape == "16x16"
    # What Google Cloud calls it.
    assert find_topology("v5litepod-8") == TOPOLOGIES["v5e-8"]


def test_the_docs_and_help_have_every_slice(repository):
    text = (repository / "docs" / "tpu.md").read_text()
    for name, topology in TOPOLOGIES.items():
        assert f"{name} ({topology.shape})" in text
        assert f"{name} ({topology.shape})" in describe_topologies()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v5e-7", r"there are v4-8, .*, v6e-256, and others .*: did you mean 'v5e-8'\?"),
        ("v9:2x2", "there are v4-8, .*: expected one of v4, v5e, v5p, v6e"),
        ("v5e", r"there are v4-8, .*: did you mean 'v5e-\d+'"),
        ("v5e:0x4", "expected a shape of 2 dimensions, such as v5e:4x8"),
        ("v4:4x4", "expected a shape of 3 dimensions, such as v4:2x4x4"),
    ],
)
def test_an_unknown_slice_is_told_in_a_sentence(name, told):
    with pytest.raises(InputError, match=told):
        find_topology(name)


def test_without_the_compiler_the_message_says_what_to_install(monkeypatch):
    from convit_jax.planning import topologies

    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install libtpu"):
        find_topology("v5e-4").devices()


@compiler_only
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--topology=v5e-4", "--config.mesh.fsdp=3"], "config.mesh.fsdp=3: 4 devices do not"),
        (["--topology=v5e-256"], "64 images do not divide among 256 devices in pairs"),
        ([], "expected --topology=NAME"),
        (["--topology=v5e-4", "--examples=0"], "--examples=0: expected at least 1"),
        (["--topology=v5e:3x5"], "shapes offered for v5e: 2x2, 2x4, 4x4"),
        (["--topology=v5e-4", "--sweep=lr"], "should be one of <batch>"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(repository, arguments, told):
    done = plan(repository, *arguments)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


PROGRAM = """
HloModule step

%body (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"10"}
  %b = (f32[8]{0}, f32[8]{0}) all-reduce-start(%a), to_apply=%add
  ROOT %c = f32[8]{0} custom-call(%b), custom_call_target="tpu_custom_call"
}

%one (p: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"7"}
}

%two (p: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"9"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%p), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %c = f32[8]{0} conditional(%i, %w, %w), branch_computations={%one, %two}
  %g = bf16[4,8]{1,0} all-gather(%c), dimensions={0}
  ROOT %f = f32[8]{0} fusion(%g), kind=kLoop, backend_config={"estimated_cycles":"100"}
}
"""


def test_loops_count_as_often_as_they_go_round():
    cost = read_cost(PROGRAM)
    assert cost.cycles == 5 * 10 + 9 + 100
    assert cost.custom_calls == 5
    assert cost.collectives == (("all-reduce", 5, 5 * 32), ("all-gather", 1, 64))


def test_a_loop_that_counts_is_known_by_its_condition():
    """What it counts to is a constant; a loop until something happens goes round once."""
    counting = """
%until (p: (s32[], f32[8])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(5), backend_config={"flag_configs":[]}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.2 = pred[]{:T(512)} compare(%i, %n.1), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY"""
    said = 'while(%p), body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    program = PROGRAM.replace(said, "while(%p), condition=%until, body=%body")
    assert program != PROGRAM
    assert read_cost(program.replace("\nENTRY", counting)) == read_cost(PROGRAM)
    assert read_cost(program).cycles == 10 + 9 + 100


def test_custom_kernels_count_by_their_schedules():
    """Those of one program have one schedule."""
    kernel = 'custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"body":"'
    program = PROGRAM.replace("ROOT %f", f'%k1 = f32[8] {kernel}A"}}\n  %k2 = f32[8] {kernel}A"}}\n'
                              f'  %k3 = f32[8] {kernel}B"}}\n  ROOT %f')  # fmt: skip
    cost = read_cost(program, {"k1": 1000, "c": 3})
    assert cost.cycles == 5 * (10 + 3) + 9 + 100 + 2 * 1000
    assert (cost.custom_calls, cost.custom_cycles, cost.unknown_calls) == (8, 2015, 1)


SCHEDULE = """
= control target key start
LB: loop body

     0   :  { %s1 = smov.u32 0 } /* entry bundle: %kernel.1 = custom-call(%p) */
   0x1 LB: > { %s2 = sphi %s1, %s3  ;;  %p1 = scmp.ge.s32.totalorder %s2, 1 }
   0x2   : > { %p2 = scmp.lt.s32.totalorder %s2, 9 }
   0x3   :  {} /* End region 1 */
   0x4 LB: >> { %v1 = vadd.f32 %v0, %v0 }
   0x5   : >> { %p3 = scmp.ge.s32.totalorder %s4, 5 /* loop exit test */ }
   0x6   : >> { %5 = sbr.rel (!%p3) target = $region2 }
   0x7 LB: >> { %p4 = scmp.ge.s32.totalorder %s5, 2 /* loop exit test */ }
   0x8   : > { %p5 = scmp.ge.s32.totalorder %s3, 10 /* loop exit test */ }
   0x9   :  { %6 = vsyncpa [#allocation2], 1 }
"""


def test_a_schedule_counts_its_bundles_as_often_as_they_run():
    """A grid of eight steps, in each five rounds of three bundles and two of one."""
    assert count_cycles(SCHEDULE) == 1 + 8 * (3 + 5 * 3 + 2 * 1 + 1) + 1
    with pytest.raises(ValueError, match="no bundles"):
        count_cycles("nothing")


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_cost("nothing")
