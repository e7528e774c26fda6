"""Weights from elsewhere: fetched once and kept."""

import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import pathlib
import posixpath
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from convit_jax.errors import InputError, RunError, boundary, first_line
from convit_jax.system.cache import cache_directory
from convit_jax.weights import hub_config
from convit_jax.weights.files import INDEX_SUFFIX, SUFFIXES, check_file, require_torch, shards_of

log = logging.getLogger(__name__)

# What the Hub's repositories call their weights, the safe format first, whole before in shards.
HUB_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
_TIMEOUT = 60  # seconds without an answer
_HUB_TIMEOUT = 10
_CHUNK = 2**20
# What a full or closed disk says while something is fetched; all else is of the network.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
            errno.EMFILE, errno.ENOMEM)  # fmt: skip


def is_address(name: str) -> bool:
    """Whether weights of that name are elsewhere."""
    return name.startswith(("https://", "http://", "hf://"))


def fetch(name: str) -> pathlib.Path:
    """The local copy of a file at `https://…` or of a model at `hf://ORG/NAME[/FILE]`.

    What was fetched before is not fetched again, and needs no network. Nothing is kept that is not
    whole. Of a model in shards it is the index, with the shards beside it.

    Raises:
        InputError: it is not there, the network is not, or what came is not whole.
        MachineError: there is no room or permission to keep it.
    """
    with boundary(name, "could not be fetched"):
        return _from_hub(name) if name.startswith("hf://") else _from_web(name)


@contextlib.contextmanager
def _network(name: str) -> Iterator[None]:
    """What a library raises for a network that fails: it is no fault of this machine's disk."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_DISK:
            raise
        reason = getattr(error, "reason", None)
        line = first_line(reason if isinstance(reason, Exception) else error)
        raise InputError(f"{name} could not be fetched: {line}") from error


def _from_web(url: str) -> pathlib.Path:
    with _network(url):
        file_name = pathlib.PurePosixPath(urllib.parse.urlparse(url).path).name
    if not file_name.endswith(SUFFIXES):
        raise InputError(f"{url}: expected a file that ends in {', '.join(SUFFIXES)}")
    # Two addresses may end in the same name.
    place = hashlib.sha256(url.encode()).hexdigest()[:16]
    kept = cache_directory() / "weights" / place / file_name
    if kept.is_file():
        return kept
    if not file_name.endswith(".safetensors"):
        require_torch(url)  # before a long download rather than after it
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f"part-{os.getpid()}-{file_name}")
    log.info("fetching %s to %s", url, kept)
    try:
        with partial.open("wb") as file:
            for chunk in _chunks(url):
                file.write(chunk)
        check_file(partial, url)
        partial.rename(kept)
    finally:
        partial.unlink(missing_ok=True)
    return kept


def _chunks(url: str) -> Iterator[bytes]:
    """What is at an address, some at a time, to its end."""
    with _network(url), urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
        received = 0
        while chunk := answer.read(_CHUNK):
            received += len(chunk)
            yield chunk
        expected = answer.headers.get("Content-Length")
        if expected is not None and received != int(expected):
            raise InputError(
                f"{url}: the connection broke after {received} of {expected} bytes; try again"
            )


def _from_hub(name: str) -> pathlib.Path:
    parts = name.removeprefix("hf://").split("/")
    if len(parts) < 2 or not all(parts):
        raise InputError(f"{name}: expected hf://ORG/NAME, such as hf://timm/convit_tiny.fb_in1k")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{name} takes another package to fetch: pip install huggingface_hub")
    repository, inside = "/".join(parts[:2]), "/".join(parts[2:])
    names = (inside,) if inside else HUB_FILES
    with _network(name):
        for file_name in names:
            kept = _cached(repository, file_name)
            if kept and all(_cached(repository, shard) for shard in _shards(kept, file_name)):
                return kept
        # First of all: what is in the cache is not asked about again.
        config = posixpath.join(posixpath.dirname(inside), hub_config.FILE_NAME)
        _download(name, repository, config)
        for file_name in names:
            kept = _download(name, repository, file_name)
            if kept is None:
                continue
            for shard in _shards(kept, file_name):
                if _download(name, repository, shard) is None:
                    raise InputError(f"{name}: the shard {shard} is missing")
            return kept
    wanted = inside or " or ".join(names)
    raise InputError(f"{name}: there is no {wanted} in the repository '{repository}'")


def _shards(kept: pathlib.Path, file_name: str) -> list[str]:
    """The files that an index in a repository is of; none for another file."""
    if not file_name.endswith(INDEX_SUFFIX):
        return []
    beside = posixpath.dirname(file_name)
    files = sorted(set(shards_of(kept, str(kept)).values()))
    return [posixpath.join(beside, file) for file in files]


def _cached(repository: str, file_name: str) -> pathlib.Path | None:
    """A repository's file, if it was fetched before."""
    import huggingface_hub  # noqa: PLC0415  (an optional extra)

    kept: Any = huggingface_hub.try_to_load_from_cache(repository, file_name)
    return pathlib.Path(kept) if isinstance(kept, str) else None


def _download(name: str, repository: str, file_name: str) -> pathlib.Path | None:
    """A repository's file, fetched; None where it has no such file.

    Raises:
        InputError: there is no such repository, or the Hub cannot be reached.
    """
    import huggingface_hub  # noqa: PLC0415  (an optional extra)
    from huggingface_hub import errors  # noqa: PLC0415

    kept = _cached(repository, file_name)
    if kept:
        return kept
    try:
        # Asked for without the repeated attempts, each with its warning, that a download makes.
        address = huggingface_hub.hf_hub_url(repository, file_name)
        huggingface_hub.get_hf_file_metadata(address, timeout=_HUB_TIMEOUT)
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file_name))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(name, error) from error
    except errors.EntryNotFoundError:
        return None
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: no public repository '{repository}' on huggingface.co"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_DISK:
            raise
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: huggingface.co cannot be reached, and its cache here has no "
        f"{' or '.join(HUB_FILES[::2])}: {first_line(error)}"
    )
