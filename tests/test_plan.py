"""python -m convit_jax.plan, with the TPU compiler and without a TPU."""

import json
import re
from types import SimpleNamespace

import jax
import pytest

from convit_jax.errors import InputError
from convit_jax.models import architecture, forward_flops
from convit_jax.planning.program import read_cost
from convit_jax.planning.schedules import count_cycles
from convit_jax.planning.topologies import CHIPS, TOPOLOGIES, describe_topologies, find_topology
from convit_jax.training.placement import memory_advice
from tests.helpers import (
    COMPILER_ENVIRONMENT,
    compiler_only,
    random_parameters,
    write_random_weights,
)

SMALL = [
    "--config.model.num_heads=4", "--config.model.head_dim=16", "--config.model.depth=2",
    "--config.model.gpsa_layers=1", "--config.model.patch_size=8",
    "--config.eval_batch_size=64",
]  # fmt: skip

STUDENT = architecture(
    "convit_tiny", num_classes=10, image_size=32, num_heads=4, head_dim=16, depth=2, gpsa_layers=1,
    patch_size=8,
)  # fmt: skip


def run_plan(run_python, *arguments, image_size=32, batch_size=64):
    """Run the command as users do."""
    arguments += f"--config.data.image_size=({image_size},)", f"--config.batch_size={batch_size}"
    command = ("-m", "convit_jax.plan", "--config=configs/convit_ti.py", *SMALL, *arguments)
    return run_python(*command, **COMPILER_ENVIRONMENT)


@compiler_only
def test_figures_of_a_plan_add_up(run_python):
    """With parameters over pairs of devices, accumulation and a running average."""
    result = run_plan(
        run_python, "--topology=v5e-4", "--json", "--config.mesh.fsdp=2",
        "--config.optimizer.accumulate=2", "--config.ema_decay=0.9", "--classes=10",
        "--examples=6400", "--config.augment.repeats=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert (plan["chips"], plan["hosts"], plan["mesh"]) == (4, 1, [2, 2])
    assert (plan["batch_size"], plan["batch_per_chip"]) == (64, 16)
    assert plan["fits"]
    # Two moments and the running average of each parameter, plus a few counters.
    assert plan["optimizer_bytes"] == pytest.approx(3 * plan["parameter_bytes"], abs=64)
    parts = ("parameter_bytes", "optimizer_bytes", "temporary_bytes", "other_bytes")
    assert all(plan[part] > 0 for part in parts)
    assert plan["total_bytes"] == sum(plan[part] for part in parts) < plan["hbm_bytes"]
    assert "nothing was run" in plan["estimates"]
    kinds = {kind for kind, _, _ in plan["collectives"]}
    assert {"all-reduce", "all-gather"} <= kinds
    assert plan["cycles"] > 10_000
    # Two layers, forward and backward, in two accumulated parts.
    assert (plan["custom_kernels"], plan["unknown_kernels"]) == (8, 0)
    assert 0 < plan["custom_cycles"] < plan["cycles"]
    seconds = 64 / plan["images_per_second"]
    assert seconds == pytest.approx(plan["cycles"] / CHIPS["v5e"].clock)
    assert plan["hours"] == pytest.approx(300 * 100 * seconds / 3600)
    assert plan["images_per_second_per_host"] == plan["images_per_second"]
    # A forward pass, and twice that backward; kernels and accumulation change nothing.
    assert plan["gflops_per_image"] == pytest.approx(3 * forward_flops(STUDENT) / 1e9)
    share = 1e9 * plan["gflops_per_image"] * 16 / seconds / CHIPS["v5e"].peak_flops
    assert plan["mfu"] == pytest.approx(share)


@compiler_only
def test_a_plan_counts_the_teacher(run_python, tmp_path):
    teacher = architecture(
        "deit_tiny", num_classes=10, image_size=32, num_heads=2, head_dim=8, depth=1, patch_size=8
    )
    write_random_weights(teacher, tmp_path / "teacher.safetensors")
    result = run_plan(
        run_python, "--topology=v5e-4", "--json", "--classes=10", "--config.mesh.fsdp=2",
        f"--config.distill.teacher={tmp_path / 'teacher.safetensors'}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    gflops = forward_flops(teacher) / 1e9
    assert plan["teacher_gflops_per_image"] == pytest.approx(gflops)
    assert plan["gflops_per_image"] == pytest.approx(3 * forward_flops(STUDENT) / 1e9 + gflops)
    # Half of nearly all float32 parameters on each chip of a pair.
    bytes_of_all = 4 * sum(p.size for p in jax.tree.leaves(random_parameters(teacher)))
    assert 0.5 * bytes_of_all <= plan["teacher_bytes"] < 0.7 * bytes_of_all


# Runs in a subprocess: once the TPU compiler is loaded, JAX's profiler, which other tests use,
# would look for a TPU and crash.
CYCLES = """
import json
import jax, jax.numpy as jnp
from convit_jax.planning.program import read_cost
from convit_jax.planning.schedules import count_cycles
from convit_jax.planning.topologies import CHIPS, find_topology

results = {}
for generation, chip in CHIPS.items():
    topology = find_topology(f"{generation}-{4 * chip.cores_in_name}")
    devices = topology.devices()
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    matrix = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=sharding)
    compiled = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    rate = 2 * 4096**3 / read_cost(compiled.as_text()).cycles
    results[generation] = [len(devices), topology.chips, rate / chip.flops_per_cycle]
hosts = {
    name: len({device.process_index for device in find_topology(name).devices()})
    for name in ("v5e-4", "v5e-8", "v6e-8", "v5e-16", "v4-16")
}
print(json.dumps([results, hosts]))
"""


@compiler_only
def test_the_compilers_devices_are_chips_and_its_cycles_agree_with_the_matrix_units(run_python):
    """A large matrix product runs at nearly, and never above, the peak of the matrix units.

    Hosts have four chips, except that a slice that is a mesh of eight chips has one host.
    """
    output = run_python("-c", CYCLES, check=True, **COMPILER_ENVIRONMENT).stdout
    results, hosts = json.loads(output.splitlines()[-1])
    assert hosts == {"v5e-4": 1, "v5e-8": 1, "v6e-8": 1, "v5e-16": 4, "v4-16": 2}
    assert results.keys() == CHIPS.keys()
    for devices, chips, share in results.values():
        assert devices == chips == 4
        assert 0.8 < share <= 1.0


DECODINGS = """
import collections, json, math
from convit_jax.data import EpochOrder
from convit_jax.data.sources import imagenet
from convit_jax.distributed.mesh import create_mesh
from convit_jax.planning import TOPOLOGIES

ratios = {}
for name, topology in TOPOLOGIES.items():
    devices = list(create_mesh(1, topology.devices()).devices.flat)
    rows_per_device = max(1024 // len(devices), 4)
    batch_size = rows_per_device * len(devices)
    order = EpochOrder(imagenet.NUM_TRAIN_IMAGES, batch_size, 0, repeats=3)
    worst = 0
    for step in range(3):
        examples = [order.locate(step, row).example for row in range(batch_size)]
        hosts = collections.defaultdict(list)
        for row, example in enumerate(examples):
            hosts[devices[row // rows_per_device].process_index].append(example)
        worst = max(worst, sum(len(set(rows)) for rows in hosts.values()))
    least = sum(math.ceil(len(rows) / 3) for rows in hosts.values())
    ratios[name] = [batch_size // len(hosts), worst / least]
print(json.dumps(ratios))
"""


@compiler_only
def test_hosts_decode_images_in_three_views_once_on_every_slice(run_python):
    """32 rows of a host need more than a third: see test_order."""
    output = run_python("-c", DECODINGS, check=True, **COMPILER_ENVIRONMENT).stdout
    ratios = json.loads(output.splitlines()[-1])
    assert ratios.keys() == TOPOLOGIES.keys()
    for name, (rows, ratio) in ratios.items():
        assert ratio <= (1.035 if rows == 32 else 1.02), name


@compiler_only
def test_a_step_that_does_not_fit_is_reported_with_advice(run_python):
    """Two layers at 224 pixels, 65,536 images per chip."""
    result = run_plan(
        run_python, "--topology=v5e-4", "--json", "--config.model.remat=true",
        image_size=224, batch_size=262144,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    plan = json.loads(result.stdout)
    assert not plan["fits"]
    match = re.fullmatch(
        r"too large for a chip's memory by (\d+\.\d\d) GiB: try a smaller config.batch_size, "
        r"a larger config.optimizer.accumulate or a larger config.mesh.fsdp",
        plan["problem"],
    )
    assert match, plan["problem"]
    # Programs can use 15.75 GiB of the chip's 16.
    assert plan["total_bytes"] / 2**30 - 15.75 == pytest.approx(float(match[1]), abs=0.01)


def test_advice_leaves_out_options_that_are_already_set(make_config):
    config = make_config()
    assert memory_advice(config, 4).startswith("try --config.model.remat=true, a smaller")
    assert memory_advice(config, 4).endswith("accumulate or a larger config.mesh.fsdp")
    assert "fsdp" not in memory_advice(config, 1)


@pytest.mark.parametrize(
    ("largest", "tried", "summary"),
    [
        (64, [64, 128, 96, 80, 72], "fits: 64, 16 a chip (72 does not)."),
        (80, [64, 128, 96, 80, 88], "(88 does not)."),
        (88, [64, 128, 96, 80, 88], "(96 does not). The fastest that was tried is 80: 2 images/s."),
        (100, [64, 128, 96, 112, 104], "fits: 96, 24 a chip (104 does not)"),
        (330, [64, 128, 256, 512, 384, 320, 352], "fits: 320, 80 a chip (352 does not)"),
        (20, [64, 32, 16, 24], "fits: 16, 4 a chip (24 does not)"),
        (9, [64, 32, 16, 8], "fits: 8, 2 a chip (16 does not)"),
        (7, [64, 32, 16, 8], "No batch fits: 8, the smallest tried, does not."),
        (10**6, [64 * 2**n for n in range(8)], "fits: 8,192, 2,048 a chip (larger ones were"),
    ],
)
def test_a_sweep_narrows_down_the_largest_batch(largest, tried, summary, monkeypatch):
    """8 is the least that four chips take in pairs."""
    from convit_jax import plan as command
    from convit_jax.config import resolve

    def plan_for(config, topology, **options):
        size = config.batch_size
        assert config.eval_batch_size == size
        return SimpleNamespace(
            fits=size <= largest,
            batch_size=size,
            chips=topology.chips,
            images_per_second=float(size <= largest) + (size == 80),
        )

    monkeypatch.setattr(command, "make_plan", plan_for)
    config = resolve({"batch_size": 64, "eval_batch_size": 64})
    plans = list(command.sweep(config, find_topology("v5e-4"), num_examples=100, num_classes=10))
    assert [plan.batch_size for plan in plans] == tried
    assert summary in command.describe_largest(plans)


def test_topologies_are_found_by_name_and_by_shape():
    assert find_topology("v4-128") == TOPOLOGIES["v4-128"]
    assert (find_topology("v4-128").shape, find_topology("v4-128").chips) == ("4x4x4", 64)
    assert find_topology("v5p:2x2x4").chips == 16
    assert find_topology("v6e-256").shape == "16x16"
    # Google Cloud's own name.
    assert find_topology("v5litepod-8") == TOPOLOGIES["v5e-8"]


def test_docs_and_help_list_every_slice(repository):
    text = (repository / "docs" / "tpu.md").read_text()
    for name, topology in TOPOLOGIES.items():
        assert f"{name} ({topology.shape})" in text
        assert f"{name} ({topology.shape})" in describe_topologies()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-7", r"there are v4-8, .*, v6e-256, and others .*: did you mean 'v5e-8'\?"),
        ("v9:2x2", "there are v4-8, .*: expected one of v4, v5e, v5p, v6e"),
        ("v5e", r"there are v4-8, .*: did you mean 'v5e-\d+'"),
        ("v5e:0x4", "expected v5e:4x8 or another shape of 2 dimensions"),
        ("v4:4x4", "expected v4:2x4x4 or another shape of 3 dimensions"),
    ],
)
def test_an_unknown_slice_is_an_input_error(name, message):
    with pytest.raises(InputError, match=message):
        find_topology(name)


def test_a_missing_compiler_is_an_input_error_that_says_what_to_install(monkeypatch):
    from convit_jax.planning import topologies

    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install libtpu"):
        find_topology("v5e-4").devices()


@compiler_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e-4", "--config.mesh.fsdp=3"], "config.mesh.fsdp=3: 4 devices do not"),
        (["--topology=v5e-256"], "64 images do not divide among 256 devices in pairs"),
        ([], "expected --topology=NAME"),
        (["--topology=v5e-4", "--examples=0"], "--examples=0: expected at least 1"),
        (["--topology=v5e:3x5"], "shapes offered for v5e: 2x2, 2x4, 4x4"),
        (["--topology=v5e-4", "--sweep=lr"], "--sweep: invalid choice: 'lr'"),
    ],
)
def test_an_invalid_flag_is_reported_with_exit_code_2(run_python, arguments, message):
    result = run_plan(run_python, *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


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


def test_loops_are_multiplied_by_their_trip_counts():
    cost = read_cost(PROGRAM)
    assert cost.cycles == 5 * 10 + 9 + 100
    assert cost.custom_calls == 5
    assert cost.collectives == (("all-reduce", 5, 5 * 32), ("all-gather", 1, 64))


def test_the_trip_count_is_inferred_from_a_condition_on_a_counter():
    """The counter is compared with a constant; a loop with another condition counts once."""
    condition = """
%until (p: (s32[], f32[8])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(5), backend_config={"flag_configs":[]}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.2 = pred[]{:T(512)} compare(%i, %n.1), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY"""
    annotated = 'while(%p), body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    program = PROGRAM.replace(annotated, "while(%p), condition=%until, body=%body")
    assert program != PROGRAM
    assert read_cost(program.replace("\nENTRY", condition)) == read_cost(PROGRAM)
    assert read_cost(program).cycles == 10 + 9 + 100


def test_custom_kernels_are_counted_by_their_schedules():
    """Kernels with the same body share a schedule."""
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
   0x1 LB: > { %s2 = sphi %s1, %s3  ;;  %p1 = scmp.lt.s32.totalorder %s2, 8 }
   0x2   : > { %p2 = scmp.ge.s32.totalorder %s2, 1  ;;  %p3 = scmp.lt.s32.totalorder %s2, 9 }
   0x3   :  {} /* End region 1 */
   0x4 LB: >> { %v1 = vadd.f32 %v0, %v0 }
   0x5   : >> { %p4 = scmp.ge.s32.totalorder %s4, 5 /* loop exit test */ }
   0x6   : >> { %5 = sbr.rel (!%p4) target = $region2 }
   0x7 LB: >> { %p5 = scmp.ge.s32.totalorder %s5, 2 /* loop exit test */ }
   0x8   : > { %p6 = scmp.ge.s32.totalorder %s3, 10 /* loop exit test */ }
   0x9   :  { %6 = vsyncpa [#allocation2], 1 }
"""


def test_bundles_of_a_schedule_are_multiplied_by_their_trip_counts():
    """A grid of eight steps; in each, five iterations of three bundles and two of one."""
    assert count_cycles(SCHEDULE) == 1 + 8 * (3 + 5 * 3 + 2 * 1 + 1) + 1
    with pytest.raises(ValueError, match="no bundles"):
        count_cycles("nothing")


@pytest.mark.parametrize(
    ("dump", "steps", "first", "last"),
    [("forward_v5e_four_steps", 4, 0xB, 0xD0), ("forward_v4_two_steps", 2, 0x17, 0x11C)],
)
def test_all_steps_of_a_grid_are_counted(reference_data, dump, steps, first, last):
    """Schedules of libtpu 0.0.52: eight images, two a step; a v4 divides them among two cores.

    Cases: the file, its steps, and the addresses of the first and the last bundle of a step.
    """
    text = (reference_data / f"schedules/{dump}.txt").read_text()
    final = int(re.findall(r"(?m)^ +(0x[0-9a-f]+) ", text)[-1], 16)
    assert count_cycles(text) == first + steps * (last - first + 1) + final - last


def test_a_text_that_is_not_hlo_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_cost("nothing")
