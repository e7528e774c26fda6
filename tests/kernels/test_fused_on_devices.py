"""The fused kernel on a mesh of simulated devices, and compiled ahead of time for TPUs."""

import json

from tests.helpers import COMPILER_ENVIRONMENT, compiler_only
from tests.processes import simulated_devices

SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from convit_jax import kernels
from convit_jax.distributed import mesh as meshes

assert jax.device_count() == 8
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(8, 6, 48)), jnp.float32)
positional = jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 6, 6)), jnp.float32))
gate = jnp.asarray([0.3, 0.9])
loss_weights = jnp.asarray(rng.normal(size=(8, 6, 16)), jnp.float32)

def results(mesh, gated):
    def loss(x, positional, gate):
        gating = (positional, gate) if gated else ()
        return jnp.sum(kernels.attention_for(mesh, "pallas")((x,), 2, *gating) * loss_weights)
    replicated, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), in_shardings=(rows, replicated, replicated),
                   out_shardings=(replicated, (rows, replicated, replicated)))
    return step(x, positional, gate)

for gated in (True, False):
    single_device = results(meshes.create_mesh(1, jax.devices()[:1]), gated)
    sharded = results(meshes.create_mesh(2), gated)
    for a, b in zip(jax.tree.leaves(single_device), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
"""


def test_sharding_over_eight_devices_changes_nothing(run_python):
    result = run_python("-c", SHARDED, **simulated_devices(8))
    assert result.returncode == 0, result.stderr


COMPILED = """
import json, re, sys
import jax, jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from convit_jax import kernels
from convit_jax.models.gpsa import GPSA
from convit_jax.planning import find_topology, schedules
from convit_jax.planning.program import read_cost

BATCH, WIDTH = 16, 192
report = {}
for name in sys.argv[1:]:
    devices = find_topology(name).devices()
    mesh = Mesh(devices, ("data",))
    rows, replicated = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    attend = kernels.attention_for(mesh)
    layer = nnx.eval_shape(
        lambda: GPSA(4, 48, dtype=jnp.bfloat16, attend=attend, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(layer)

    def loss(params, x):
        return nnx.merge(graph, params)(x, (14, 14)).astype(jnp.float32).sum()

    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=replicated), params)
    x = jax.ShapeDtypeStruct((BATCH, 196, WIDTH), jnp.bfloat16, sharding=rows)
    schedules.clear()
    text = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile().as_text()
    cost = read_cost(text, schedules.read_cycles())
    # Copies and transposes of arrays as large as the tokens, except for the positional map and its
    # gradient, which is padded to 256 queries.
    tokens = BATCH // len(devices) * 196 * WIDTH
    copies = []
    for dtype, sizes, operation in re.findall(
            r"= (\\w+)\\[([\\d,]+)\\]\\S* (copy|transpose)\\(", text):
        size = 1
        for side in sizes.split(","):
            size *= int(side)
        is_positional = sizes.removeprefix("1,") in ("4,196,196", "196,196,4", "4,196,256")
        copies += [f"{operation} {dtype}[{sizes}]"] * (size >= tokens and not is_positional)
    report[name] = [cost.custom_calls, cost.unknown_calls, cost.custom_cycles, copies]

# One token, and enough tokens for loops over heads and several tiles of queries.
device = find_topology("v5e-4").devices()[:1]
for tokens in (1, 784):
    def total(qkv, positional, gate):
        out = kernels.attention_for(Mesh(device, ("data",)))((qkv,), 4, positional, gate)
        return out.astype(jnp.float32).sum()

    on = jax.sharding.SingleDeviceSharding(device[0])
    inputs = [jax.ShapeDtypeStruct(shape, dtype, sharding=on) for shape, dtype in (
        ((1, tokens, 576), jnp.bfloat16), ((4, tokens, tokens), jnp.float32), ((4,), jnp.float32))]
    text = jax.jit(jax.grad(total, (0, 1, 2))).lower(*inputs).compile().as_text()
    assert read_cost(text).custom_calls == 2
print(json.dumps(report))
"""


@compiler_only
def test_it_compiles_for_every_tpu_without_copies_around_it(run_python):
    """A GPSA layer of ConViT-Ti and its gradient, on four chips.

    A chip has four images, two a step: the two cores of a v4 or v5p compute a step each. One core
    of a v5p needs as long as that of a v5e for a step, one of a v4 less than twice as long.
    """
    names = ["v4-8", "v5e-4", "v5p-8", "v6e-4"]
    result = run_python("-c", COMPILED, *names, **COMPILER_ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report.keys() == set(names)
    images = {"v4-8": 2, "v5e-4": 4, "v5p-8": 2, "v6e-4": 4}
    for name, (calls, unknown, cycles, copies) in report.items():
        assert (calls, unknown) == (2, 0)
        # Four heads, forward and backward; the products alone take about 400 cycles per head.
        assert images[name] * 4 * 400 < cycles < images[name] * 4 * 4000
        assert copies == []
    assert report["v5p-8"][2] < 0.6 * report["v5e-4"][2]
    assert report["v4-8"][2] < report["v5e-4"][2]
