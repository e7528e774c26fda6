"""Compiling a model's methods when they are called eagerly, as in a notebook."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import jax
from flax import nnx
from jax.extend.core import get_opaque_trace_state

Module = TypeVar("Module", bound=nnx.Module)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# JAX's state outside of all transformations, as it is in a new thread: this module may itself be
# imported inside of one.
with concurrent.futures.ThreadPoolExecutor(1) as _thread:
    _EAGER = _thread.submit(get_opaque_trace_state, convention="nnx").result()


def compiled_if_eager(
    method: Callable[Concatenate[Module, Arguments], Result],
) -> Callable[Concatenate[Module, Arguments], Result]:
    """Compile a module's method when it is called outside of JAX's transformations.

    Operation by operation, the first call of a model compiles hundreds of small programs, and all
    calls are slower. The program is shared by all modules of the same structure, with their arrays
    as arguments, and is compiled again only for other shapes or types. New values of the module's
    variables, and those that `nnx.capture` collects, are kept.

    Inside of a transformation (`jax.jit`, `jax.grad`, `jax.vmap`, `nnx.eval_shape`, …) the method
    is called unchanged, and becomes a part of the program that is being traced. It is also called
    unchanged if parts of the module share variables.

    Args:
        method: of an `nnx.Module`; its other arguments are arrays, trees of them, or None.
    """
    # The module is passed as a tree: as a graph, all of its arrays would be copied in every call.
    compiled = nnx.jit(method, graph=False)

    @functools.wraps(method)
    def call(self: Module, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        eager = get_opaque_trace_state(convention="nnx") == _EAGER
        function = compiled if eager and not _shares_variables(self) else method
        return function(self, *args, **kwargs)

    return call


def _shares_variables(module: nnx.Module) -> bool:
    """Whether a variable occurs in several places, which `nnx.jit` refuses for trees."""
    variables = jax.tree.leaves(module, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return len({id(variable) for variable in variables}) < len(variables)
