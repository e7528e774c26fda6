"""Repositories on the Hugging Face Hub: the files of a model, and uploading them."""

import contextlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping

from convit_jax.errors import InputError, RunError, first_line
from convit_jax.models import Architecture
from convit_jax.weights import hub_config
from convit_jax.weights.downloads import HUB_FILES
from convit_jax.weights.loading import Weights
from convit_jax.weights.model_card import model_card
from convit_jax.weights.model_checkpoints import find_checkpoint, read_run
from convit_jax.weights.timm_config import timm_config
from convit_jax.weights.writing import safetensors_bytes

PREFIX = "hf://"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What the Hub answers when the token does not allow it.
_NOT_ALLOWED = (401, 403)


def repository_of(destination: str) -> str:
    """Return ORG/NAME for hf://ORG/NAME.

    Raises:
        InputError: it is no name of a repository.
    """
    repository = destination.removeprefix(PREFIX)
    parts = repository.split("/")
    invalid = re.search(r"--|\.\.", repository) or not all(map(_NAME.fullmatch, parts))
    if len(parts) != 2 or invalid:
        raise InputError(
            f"{destination}: expected hf://ORG/NAME, where ORG is your user name or an "
            "organisation on huggingface.co, of letters, digits, '-', '_' and '.'"
        )
    return repository


def check_can_upload(destination: str) -> None:
    """Check that a repository can be uploaded to, as far as that shows without the network.

    Raises:
        InputError: the name is invalid, or huggingface_hub or a token is missing.
    """
    repository_of(destination)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{destination} needs another package: pip install huggingface_hub")
    import huggingface_hub  # noqa: PLC0415  (an optional extra)

    if not huggingface_hub.get_token():
        raise InputError(
            f"{destination}: uploading needs a token of the Hub: make one that can write at "
            "https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN"
        )


def repository_files(
    destination: str, weights: Weights, architecture: Architecture
) -> dict[str, bytes]:
    """Return the files of a model's repository by name: weights, timm's config, the model card.

    Raises:
        InputError: the weights do not fit the architecture, or their images are unknown.
    """
    preprocessing = weights.preprocessing(architecture)
    run = None if weights.directory is None else read_run(find_checkpoint(weights.directory))
    size = sum(int(array.size) for array in weights.tensors_for(architecture).values())
    repository, assumptions = repository_of(destination), weights.card.assumptions()
    card = model_card(repository, architecture, preprocessing, run, size, assumptions)
    config = timm_config(architecture, preprocessing, weights.class_names())
    return {
        HUB_FILES[0]: safetensors_bytes(weights, architecture),
        hub_config.FILE_NAME: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        "README.md": card.encode(),
    }


def upload(destination: str, files: Mapping[str, bytes], *, replace: bool) -> str:
    """Upload files in one commit, to a repository that is created if it does not exist.

    Args:
        destination: hf://ORG/NAME.
        files: by name.
        replace: whether to replace weights that the repository has; they stay in its history.

    Returns:
        The address of the commit.

    Raises:
        InputError: the Hub cannot be reached or refuses it, or there are weights already. Nothing
            was uploaded then.
    """
    import huggingface_hub  # noqa: PLC0415  (an optional extra)

    repository = repository_of(destination)
    with _hub_errors(destination):
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, exist_ok=True)
        if not replace and hub.file_exists(repository, HUB_FILES[0]):
            raise InputError(
                f"{destination} has {HUB_FILES[0]} already: choose another name, or --replace it "
                "(the repository's history keeps it)"
            )
        operations = [
            huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in files.items()
        ]
        commit = hub.create_commit(repository, operations, commit_message="Upload by convit_jax")
    return commit.commit_url


@contextlib.contextmanager
def _hub_errors(destination: str) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into one sentence."""
    from huggingface_hub import errors  # noqa: PLC0415  (an optional extra)

    try:
        yield
    except (InputError, RunError):
        raise
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        reason = f"the Hub answers {status}: {first_line(error)}"
        if status in _NOT_ALLOWED:
            reason = (
                f"the Hub does not let this token write there ({status}): make one that can at "
                "https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN"
            )
        raise InputError(f"{destination}: {reason}; nothing was uploaded") from error
    except Exception as error:
        raise InputError(
            f"{destination}: huggingface.co cannot be reached: {first_line(error)}; nothing was "
            "uploaded"
        ) from error
