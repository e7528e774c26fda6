"""Which tensors of a file are the model's: the entry of a training checkpoint, and its prefixes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convit_jax.errors import InputError, nearest

# By this tensor a vision transformer is known, whatever stands before its name.
_ANCHOR = "patch_embed.proj.weight"
# What wrappers put before every name: data parallelism, torch.compile, Lightning.
_WRAPPERS = ("module", "_orig_mod", "model")
# Running averages of the parameters, by a part of what they are called.
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?)(?:$|[._])", re.IGNORECASE)
# What the model is called where there are several, in order of preference; "" is the file itself.
_USUAL = ("model", "state_dict", "model_state_dict", "module", "net", "network", "params", "")
# Entries of training that hold tensors of other things than a model.
_NO_MODEL = ("optim", "scaler", "lr_sched", "scheduler")
_DEEPEST = 4

Tensors = dict[str, Any]


def choose(content: Any, entry: str | None, name: str) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of a model in what a file holds, by name.

    Args:
        content: tensors by name, or those in entries of nested dictionaries.
        entry: which model to take, as the notes and messages call it, or None: the running average
            where there is one.
        name: of the file.

    Returns:
        The tensors, without what wrappers put before their names, and notes: what was chosen, and
        how to ask for another.

    Raises:
        InputError: there are none, there is no such entry, or it must be said which.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{name} holds a {type(content).__name__}, expected tensors by name")
    groups, beside = {}, {}
    for label, group, others in _groups(content, (), set()):
        groups[label], beside[label] = group, others
    if not groups:
        only = ", ".join(str(key)[:40] for key in list(content)[:9] if isinstance(key, str))
        raise InputError(f"{name} holds no tensors, only {only or 'nothing'}")
    models = {label: group for label, group in groups.items() if _ANCHOR in group} or groups
    if entry is not None:
        return groups[_matching(entry, groups, name)], ()
    label = _usual(models, name)
    return models[label], tuple(_notes(label, models, beside[label], name))


def _matching(entry: str, groups: Mapping[str, Tensors], name: str) -> str:
    if entry in groups:
        return entry
    ends = [label for label in groups if label.endswith(f".{entry}")]
    if len(ends) == 1:
        return ends[0]
    called = [label for label in groups if label]
    hint = nearest(entry, called) if called else f"expected {name}, which holds one alone"
    raise InputError(f"{name} has no model called '{entry}': {hint}")


def _usual(models: Mapping[str, Tensors], name: str) -> str:
    """The label of the model that is taken if nobody asks for another."""
    averages = [label for label in models if _AVERAGE.search(label)]
    if len(averages) == 1:
        return averages[0]
    candidates = averages or list(models)
    if len(candidates) == 1:
        return candidates[0]
    if not any(_ANCHOR in models[label] for label in candidates):
        # No model of ours: the largest shows best of what kind it is.
        return max(candidates, key=lambda label: len(models[label]))
    for usual in _USUAL if not averages else ():
        for label in candidates:
            if label == usual or (usual and label.endswith(f".{usual}")):
                return label
    choices = " or ".join(f"{name}#{label}" for label in candidates)
    raise InputError(f"{name} holds several models: say which, by {choices}")


def _notes(label: str, models: Mapping[str, Tensors], beside: int, name: str) -> Iterator[str]:
    others = [other for other in models if other not in (label, "")]
    is_average = bool(_AVERAGE.search(label))
    if is_average or others:
        what = ", the running average of the parameters," if is_average else ""
        ask = f"; for another: {', '.join(f'{name}#{o}' for o in others)}" if others else ""
        yield f"'{label}'{what} is taken{ask}"
    if beside:
        yield f"left out, no part of the model: {beside} other tensors beside it"


def _groups(
    content: Mapping[Any, Any], path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[str, Tensors, int]]:
    """(label, tensors, number of tensors that are no model's beside them) of each model."""
    if id(content) in seen:
        return
    seen.add(id(content))
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if _is_tensor(value)}
    if tensors:
        by_prefix = _by_prefix(tensors)
        others = len(tensors) - sum(map(len, by_prefix.values()))
        for prefix, group in by_prefix.items():
            inside = prefix.rstrip(".") if len(by_prefix) > 1 else ""
            yield ".".join(filter(None, (*path, inside))), group, others
    for key, value in named.items():
        below = isinstance(value, Mapping) and len(path) < _DEEPEST
        if below and not key.lower().startswith(_NO_MODEL):
            yield from _groups(value, (*path, key), seen)


def _is_tensor(value: Any) -> bool:
    """An array of numpy's or a tensor of PyTorch's, which need not be installed."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def _by_prefix(tensors: Tensors) -> dict[str, Tensors]:
    """The tensors of each model among them, by what stands before their names, and without it.

    A prefix is where a model's first tensor says so; what has another prefix is no part of that
    model. Where no model shows itself, only a wrapper's prefix that all names share is taken off.
    """
    ends = [key.removesuffix(_ANCHOR) for key in tensors if key.endswith(_ANCHOR)]
    prefixes = sorted({p for p in ends if not p or p.endswith(".")}, key=len, reverse=True)
    if not prefixes:
        return {"": _unwrapped(tensors)}
    groups: dict[str, Tensors] = {prefix: {} for prefix in prefixes}
    for key, value in tensors.items():
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is not None:
            groups[prefix][key.removeprefix(prefix)] = value
    return groups


def _unwrapped(tensors: Tensors) -> Tensors:
    while tensors:
        first = {key.partition(".")[0] for key in tensors}
        if len(first) > 1 or not first <= set(_WRAPPERS):
            break
        prefix = f"{first.pop()}."
        if not all(key.startswith(prefix) for key in tensors):
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
