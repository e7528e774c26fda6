"""Finding a model's tensors in a file: entries of training checkpoints, and name prefixes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convit_jax.errors import InputError, nearest

# Every vision transformer has this tensor, possibly with a prefix.
_ANCHOR = "patch_embed.proj.weight"
# Prefixes that wrappers add to every name: data parallelism, torch.compile, Lightning.
_WRAPPERS = ("module", "_orig_mod", "model")
# Part of the names of running averages of the parameters.
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?)(?:$|[._])", re.IGNORECASE)
# Names of the model if there are several, in order of preference; "" is the file itself.
_PREFERRED = ("model", "state_dict", "model_state_dict", "module", "net", "network", "params", "")
# Prefixes of the entries of training checkpoints whose tensors are not a model's.
_TRAINING_STATE = ("optim", "scaler", "lr_sched", "scheduler")
_MAX_DEPTH = 4

Tensors = dict[str, Any]


def choose(content: Any, entry: str | None, name: str) -> tuple[Tensors, tuple[str, ...]]:
    """Choose the tensors of one model from the content of a file.

    Args:
        content: tensors by name, possibly inside nested dictionaries.
        entry: the model to choose, as it is called in notes and messages. None chooses the running
            average, if there is one.
        name: of the file, for messages.

    Returns:
        The tensors by name, without wrappers' prefixes, and notes: what was chosen, and how to
        choose another model.

    Raises:
        InputError: there are no tensors or no such entry, or the entry must be specified.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{name} holds a {type(content).__name__}, expected tensors by name")
    groups, num_ignored = {}, {}
    for label, group, ignored in _find_models(content, (), set()):
        groups[label], num_ignored[label] = group, ignored
    if not groups:
        keys = ", ".join(str(key)[:40] for key in list(content)[:9] if isinstance(key, str))
        raise InputError(f"{name} holds no tensors, only {keys or 'nothing'}")
    models = {label: group for label, group in groups.items() if _ANCHOR in group} or groups
    if entry is not None:
        return groups[_find_entry(entry, groups, name)], ()
    label = _default_label(models, name)
    return models[label], tuple(_choice_notes(label, models, num_ignored[label], name))


def _find_entry(entry: str, groups: Mapping[str, Tensors], name: str) -> str:
    if entry in groups:
        return entry
    matches = [label for label in groups if label.endswith(f".{entry}")]
    if len(matches) == 1:
        return matches[0]
    labels = [label for label in groups if label]
    hint = nearest(entry, labels) if labels else f"expected {name}, which holds a single model"
    raise InputError(f"{name} has no model called '{entry}': {hint}")


def _default_label(models: Mapping[str, Tensors], name: str) -> str:
    """Return the label of the model to use if none was requested."""
    averages = [label for label in models if _AVERAGE.search(label)]
    if len(averages) == 1:
        return averages[0]
    candidates = averages or list(models)
    if len(candidates) == 1:
        return candidates[0]
    if not any(_ANCHOR in models[label] for label in candidates):
        # Not a supported model: the largest group identifies best what it is.
        return max(candidates, key=lambda label: len(models[label]))
    for preferred in _PREFERRED if not averages else ():
        for label in candidates:
            if label == preferred or (preferred and label.endswith(f".{preferred}")):
                return label
    choices = " or ".join(f"{name}#{label}" for label in candidates)
    raise InputError(f"{name} holds several models: specify {choices}")


def _choice_notes(
    label: str, models: Mapping[str, Tensors], num_ignored: int, name: str
) -> Iterator[str]:
    others = [other for other in models if other not in (label, "")]
    is_average = bool(_AVERAGE.search(label))
    if is_average or others:
        average = ", the running average of the parameters" if is_average else ""
        alternatives = ", ".join(f"{name}#{other}" for other in others)
        yield f"using '{label}'{average}" + (f"; for another: {alternatives}" if others else "")
    if num_ignored:
        yield f"ignored {num_ignored} other tensors, which are not part of the model"


def _find_models(
    content: Mapping[Any, Any], path: tuple[str, ...], visited: set[int]
) -> Iterator[tuple[str, Tensors, int]]:
    """Yield each model's label, its tensors, and the number of tensors beside it of no model."""
    if id(content) in visited:
        return
    visited.add(id(content))
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if _is_tensor(value)}
    if tensors:
        by_prefix = _group_by_prefix(tensors)
        num_ignored = len(tensors) - sum(map(len, by_prefix.values()))
        for prefix, group in by_prefix.items():
            last = prefix.rstrip(".") if len(by_prefix) > 1 else ""
            yield ".".join(filter(None, (*path, last))), group, num_ignored
    for key, value in named.items():
        is_nested = isinstance(value, Mapping) and len(path) < _MAX_DEPTH
        if is_nested and not key.lower().startswith(_TRAINING_STATE):
            yield from _find_models(value, (*path, key), visited)


def _is_tensor(value: Any) -> bool:
    """Whether it is a NumPy array or a PyTorch tensor; PyTorch need not be installed."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def _group_by_prefix(tensors: Tensors) -> dict[str, Tensors]:
    """Group tensors by their model's prefix, which is removed from their names.

    The prefixes of `_ANCHOR` are those of the models; tensors with other prefixes belong to none of
    them. Without any anchor, only a wrapper's prefix that all names share is removed.
    """
    candidates = {key.removesuffix(_ANCHOR) for key in tensors if key.endswith(_ANCHOR)}
    prefixes = sorted((p for p in candidates if not p or p.endswith(".")), key=len, reverse=True)
    if not prefixes:
        return {"": _without_wrappers(tensors)}
    groups: dict[str, Tensors] = {prefix: {} for prefix in prefixes}
    for key, value in tensors.items():
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is not None:
            groups[prefix][key.removeprefix(prefix)] = value
    return groups


def _without_wrappers(tensors: Tensors) -> Tensors:
    while tensors:
        first_parts = {key.partition(".")[0] for key in tensors}
        if len(first_parts) > 1 or not first_parts <= set(_WRAPPERS):
            break
        prefix = f"{first_parts.pop()}."
        if not all(key.startswith(prefix) for key in tensors):
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
