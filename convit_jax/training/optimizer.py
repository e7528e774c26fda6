"""AdamW as in DeiT's recipe, or another rule: learning rate, decay, clipping, freezing."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from convit_jax.config import Config, OptimizerConfig
from convit_jax.errors import InputError, boundary
from convit_jax.models import is_of_head

# Placeholder in a pattern for the numbers of the GPSA layers.
_GPSA = "{gpsa}"
# What Muon orthogonalises: the hidden matrices, not those of images, positions and classes.
_MUON = re.compile(r"blocks\.\d+\.(attention\.(qk|v|qkv|proj)|mlp\.fc[12])\.kernel")
# The root mean square of Muon's updates, which is AdamW's (Liu et al. 2025, Moonlight): one
# learning rate and one weight decay fit both.
_MUON_RMS = 0.2


def parameter_names(params: Any) -> list[str]:
    """Return the dotted names of the leaves (`blocks.0.norm1.scale`) in `jax.tree.leaves` order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def match_parameters(params: Any, patterns: tuple[str, ...], key: str) -> Any:
    """Mark the parameters whose full name matches one of the patterns.

    Args:
        params: a tree of parameters.
        patterns: regular expressions; `{gpsa}` in them stands for the numbers of the GPSA layers.
        key: the config key to name in errors.

    Returns:
        A tree like `params`, of bool.

    Raises:
        InputError: a pattern is not a valid regular expression, or matches no parameter.
    """
    names = parameter_names(params)
    gpsa = _gpsa_layers(names)
    matched: set[str] = set()
    for pattern in patterns:
        with boundary(f"config.{key}: '{pattern}'", "is not a valid regular expression"):
            expression = re.compile(pattern.replace(_GPSA, gpsa))
        matches = {name for name in names if expression.fullmatch(name)}
        if not matches:
            raise InputError(
                f"config.{key}: '{pattern}' matches none of the {len(names)} parameters; their "
                f"names are like '{names[0]}' and '{names[-1]}'"
            )
        matched |= matches
    return jax.tree.unflatten(jax.tree.structure(params), [name in matched for name in names])


def _gpsa_layers(names: list[str]) -> str:
    """Return a regular expression for the numbers of the layers with a `pos_proj`."""
    matches = (re.fullmatch(r"blocks\.(\d+)\.attention\.pos_proj\..*", name) for name in names)
    numbers = dict.fromkeys(match[1] for match in matches if match)
    # Without GPSA layers the expression matches nothing.
    return f"(?:{'|'.join(numbers)})" if numbers else "(?!)"


def trainable_filter(params: Any, frozen: tuple[str, ...]) -> nnx.filterlib.Filter:
    """Return an NNX filter that selects the parameters which are trained; `True` for all.

    Args:
        params: the tree of all parameters.
        frozen: the patterns of `config.optimizer.frozen`; the parameters that they match are not
            trained.

    Raises:
        InputError: a pattern is not a valid regular expression, or matches no parameter.
    """
    if not frozen:
        return True
    matched = jax.tree.leaves(match_parameters(params, frozen, "optimizer.frozen"))
    named = zip(parameter_names(params), matched, strict=True)
    trained = {name for name, is_frozen in named if not is_frozen}
    return lambda path, _: ".".join(map(str, path)) in trained


def split_parameters(params: Any, trainable: nnx.filterlib.Filter) -> tuple[Any, Any]:
    """Split a tree of parameters into those that a filter selects and the others.

    Args:
        params: a tree of parameters, or one like it.
        trainable: an NNX filter, such as `trainable_filter` returns.

    Returns:
        Two trees, in which the leaves keep their paths; together they have all leaves.
    """
    selected, others = nnx.split_state(nnx.State(params), trainable, ...)
    return nnx.to_pure_dict(selected), nnx.to_pure_dict(others)


def merge_parameters(trained: Any, frozen: Any) -> Any:
    """Return the tree that `split_parameters` split."""
    return nnx.to_pure_dict(nnx.merge_state(nnx.State(trained), nnx.State(frozen)))


def decay_mask(params: Any, no_decay: tuple[str, ...]) -> Any:
    """Return a mask that is True where weight decay applies, i.e. not matched by `no_decay`."""
    exempt = match_parameters(params, no_decay, "optimizer.no_decay")
    return jax.tree.map(lambda is_exempt: not is_exempt, exempt)


def learning_rate(
    config: Config, total_steps: int, warmup_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Return the schedule step → learning rate: a linear warm-up, then a cosine.

    As in the released recipe, the phase of the cosine includes the warm-up steps, so its peak is
    never quite reached. Only the peak scales with the batch size. The released code also changes
    the rate only once per epoch (`schedule_every`) and one epoch late (`schedule_lag`).
    """
    o = config.optimizer
    peak = o.learning_rate * config.batch_size / o.learning_rate_batch

    def schedule(step: jax.Array | int) -> jax.Array:
        if o.schedule_every == "epoch":
            step = step // steps_per_epoch * steps_per_epoch
        step = jnp.maximum(step - o.schedule_lag * steps_per_epoch, 0)
        warm_up = o.warmup_learning_rate + (peak - o.warmup_learning_rate) * step / max(
            warmup_steps, 1
        )
        cosine = jnp.cos(jnp.pi * jnp.minimum(step / total_steps, 1.0))
        annealed = o.min_learning_rate + (peak - o.min_learning_rate) * (1 + cosine) / 2
        return jnp.where(step < warmup_steps, warm_up, annealed)

    return schedule


def layer_scales(params: Any, decay: float) -> Any:
    """Return the factor of each parameter's learning rate, smaller for layers near the input.

    With n blocks, block i (from 0) has decay^(n - i), parameters before the blocks decay^(n + 1),
    and the last norm and the head 1 (layer-wise decay, Bao et al. 2022, BEiT).

    Returns:
        A tree like `params`, of float.
    """
    names = parameter_names(params)
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in names]
    depth = 1 + max(int(match[1]) for match in blocks if match)

    def scale(name: str, block: re.Match[str] | None) -> float:
        if block:
            return decay ** (depth - int(block[1]))
        return 1.0 if name.startswith("norm.") or is_of_head(name) else decay ** (depth + 1)

    scales = [scale(name, block) for name, block in zip(names, blocks, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), scales)


def _update_rule(
    config: OptimizerConfig, schedule: optax.Schedule, params: Any, decays: Any
) -> optax.GradientTransformation:
    """Return the rule by which gradients become updates, with weight decay.

    Args:
        config: settings of the optimizer.
        schedule: step → learning rate.
        params: the trained parameters; only their names are read.
        decays: a tree like `params`, of bool: whether a parameter decays.
    """
    decay = config.weight_decay
    adam = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name == "lamb":
        return optax.lamb(schedule, **adam, weight_decay=decay, mask=decays)
    adamw = optax.adamw(schedule, **adam, weight_decay=decay, mask=decays)
    if config.name == "adamw":
        return adamw
    muon = optax.contrib.muon(
        schedule, weight_decay=decay, weight_decay_mask=decays, consistent_rms=_MUON_RMS
    )
    rules = ["muon" if _MUON.fullmatch(name) else "adamw" for name in parameter_names(params)]
    labels = jax.tree.unflatten(jax.tree.structure(params), rules)
    return optax.partition({"muon": muon, "adamw": adamw}, labels)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, params: Any
) -> optax.GradientTransformation:
    """Return the optimizer of the trained parameters: clipping, update rule, layer-wise decay.

    It updates the part of the parameters that `trainable_filter` selects: frozen parameters have no
    gradient, no moments and no share in the norm that clipping limits.

    Args:
        config: settings of the optimizer.
        schedule: step → learning rate.
        params: the tree of all parameters; only names and structure are read.

    Raises:
        InputError: a pattern of `no_decay` or `frozen` matches no parameter.
    """
    trainable = trainable_filter(params, config.frozen)

    def of_trained(tree: Any) -> Any:
        return split_parameters(tree, trainable)[0]

    decays = of_trained(decay_mask(params, config.no_decay))
    rule = _update_rule(config, schedule, of_trained(params), decays)
    # The state has the same structure with and without clipping, so a run can resume with either.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    optimizer = optax.chain(clip, rule)
    if config.layer_decay != 1.0:
        scales = of_trained(layer_scales(params, config.layer_decay))
        scaled = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))
        optimizer = optax.chain(optimizer, scaled)
    if not config.frozen:
        return optimizer
    # Does nothing. In earlier versions a transformation here discarded the updates of the frozen
    # parameters; with one of the same state, their checkpoints can be resumed.
    return optax.chain(optimizer, optax.masked(optax.identity(), mask=True))
