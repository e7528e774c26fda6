"""Downloading of weights from the web and the Hugging Face Hub, with a cache."""

import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import pathlib
import posixpath
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from convit_jax.errors import InputError, RunError, boundary, first_line
from convit_jax.system.cache import cache_directory
from convit_jax.weights import hub_config
from convit_jax.weights.files import (
    INDEX_SUFFIX,
    SUFFIXES,
    check_file,
    read_weight_map,
    require_torch,
)

log = logging.getLogger(__name__)

# Names of the weights in Hub repositories: the safe format first, single files before shards.
HUB_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
_HUB = "https://huggingface.co/"
_TIMEOUT = 60  # seconds without a response
_HUB_TIMEOUT = 10
_CHUNK = 2**20
# Errors of the local disk during a download; all others are the network's.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
            errno.EMFILE, errno.ENOMEM)  # fmt: skip


def is_remote(name: str) -> bool:
    """Whether weights of that name must be downloaded."""
    return name.startswith(("https://", "http://", "hf://"))


def fetch(name: str) -> pathlib.Path:
    """Return the local copy of `https://…/FILE` or of a model at `hf://ORG/NAME[/FILE]`.

    Cached files are not downloaded again and need no network. Incomplete files are not cached. For
    a model in shards, the index is returned, with the shards in the same directory.

    Raises:
        InputError: it does not exist, the network fails, or the downloaded file is incomplete.
        MachineError: there is no space or permission to store it.
    """
    with boundary(name, "could not be fetched"):
        return _fetch_from_hub(name) if name.startswith("hf://") else _fetch_from_web(name)


@contextlib.contextmanager
def _network_errors(name: str) -> Iterator[None]:
    """Turn what libraries raise when the network fails into InputErrors, except disk errors."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        reason = getattr(error, "reason", None)
        line = first_line(reason if isinstance(reason, Exception) else error)
        raise InputError(f"{name} could not be fetched: {line}") from error


def _fetch_from_web(url: str) -> pathlib.Path:
    with _network_errors(url):
        file_name = pathlib.PurePosixPath(urllib.parse.urlparse(url).path).name
    if not file_name.endswith(SUFFIXES):
        raise InputError(f"{url}: expected a file that ends in {', '.join(SUFFIXES)}")
    # Different addresses may end in the same file name.
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    cached = cache_directory() / "weights" / digest / file_name
    if cached.is_file():
        return cached
    if not file_name.endswith(".safetensors"):
        require_torch(url)  # before a long download, not after it
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_name(f"part-{os.getpid()}-{file_name}")
    log.info("fetching %s to %s", url, cached)
    try:
        with partial.open("wb") as file:
            for chunk in _download_chunks(url):
                file.write(chunk)
        check_file(partial, url)
        partial.rename(cached)
    finally:
        partial.unlink(missing_ok=True)
    return cached


def _download_chunks(url: str) -> Iterator[bytes]:
    """Download the content of an address in chunks, and check its length."""
    with _network_errors(url), urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        received = 0
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            yield chunk
        expected = response.headers.get("Content-Length")
        if expected is not None and received != int(expected):
            raise InputError(
                f"{url}: the connection broke after {received} of {expected} bytes; try again"
            )


def _fetch_from_hub(name: str) -> pathlib.Path:
    name_parts = name.removeprefix("hf://").split("/")
    if len(name_parts) < 2 or not all(name_parts):
        raise InputError(f"{name}: expected hf://ORG/NAME, such as hf://timm/convit_tiny.fb_in1k")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{name} needs another package: pip install huggingface_hub")
    repository, path_in_repository = "/".join(name_parts[:2]), "/".join(name_parts[2:])
    file_names = (path_in_repository,) if path_in_repository else HUB_FILES
    with _network_errors(name):
        for file_name in file_names:
            cached = _cached(repository, file_name)
            shards = _shard_names(cached, file_name) if cached else []
            if cached and all(_cached(repository, shard) for shard in shards):
                return cached
        # The config first: once the weights are cached, the Hub is not contacted again.
        config = posixpath.join(posixpath.dirname(path_in_repository), hub_config.FILE_NAME)
        _download(name, repository, config)
        for file_name in file_names:
            cached = _download(name, repository, file_name)
            if cached is None:
                continue
            for shard in _shard_names(cached, file_name):
                if _download(name, repository, shard) is None:
                    raise InputError(f"{name}: the shard {shard} is missing")
            return cached
    expected = path_in_repository or " or ".join(file_names)
    raise InputError(f"{name}: no {expected} in the repository '{repository}'")


def _shard_names(cached: pathlib.Path, file_name: str) -> list[str]:
    """Return the names of an index's shards in the repository; [] for a file that is no index."""
    if not file_name.endswith(INDEX_SUFFIX):
        return []
    directory = posixpath.dirname(file_name)
    files = sorted(set(read_weight_map(cached, str(cached)).values()))
    return [posixpath.join(directory, file) for file in files]


def _cached(repository: str, file_name: str) -> pathlib.Path | None:
    """Return a repository's file if it is in the cache."""
    import huggingface_hub  # noqa: PLC0415  (an optional extra)

    cached: Any = huggingface_hub.try_to_load_from_cache(repository, file_name)
    return pathlib.Path(cached) if isinstance(cached, str) else None


def _download(name: str, repository: str, file_name: str) -> pathlib.Path | None:
    """Download a repository's file; return None if the repository does not have it.

    Raises:
        InputError: the repository does not exist, or the Hub cannot be reached.
    """
    import huggingface_hub  # noqa: PLC0415  (an optional extra)
    from huggingface_hub import errors  # noqa: PLC0415

    cached = _cached(repository, file_name)
    if cached:
        return cached
    try:
        # Request the metadata first: unlike a download, this does not retry with warnings.
        address = huggingface_hub.hf_hub_url(repository, file_name)
        metadata = huggingface_hub.get_hf_file_metadata(address, timeout=_HUB_TIMEOUT)
        log.info("fetching %s of %s", file_name, name)
        path = pathlib.Path(huggingface_hub.hf_hub_download(repository, file_name))
        _check_hash(path, metadata.etag, f"{name}: {file_name}")
        return path
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(name, error) from error
    except errors.EntryNotFoundError:
        return None
    except errors.RepositoryNotFoundError as error:
        problem = f"no public repository '{repository}' on huggingface.co"
        raise InputError(f"{name}: {problem}") from error
    except (errors.HfHubHTTPError, errors.HFValidationError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise _unreachable(name, error) from error


def _check_hash(path: pathlib.Path, etag: str | None, name: str) -> None:
    """Check a downloaded file; the Hub's tag of a large file is its SHA-256.

    Raises:
        InputError: it is damaged; it is removed from the cache.
    """
    if etag is None or not re.fullmatch("[0-9a-f]{64}", etag):
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise InputError(
            f"{name} was damaged on the way: its SHA-256 is {actual}, expected {etag}; try again"
        )


def _unreachable(name: str, error: Exception) -> InputError:
    cached = _cached_weights()
    others = f"; the cache has {', '.join(cached)}" if cached else ""
    return InputError(
        f"{name}: huggingface.co cannot be reached, and its cache here has no "
        f"{' or '.join(HUB_FILES[::2])}: {first_line(error)}{others}; without a network, copy "
        f"{HUB_FILES[0]} and {hub_config.FILE_NAME} of {name.replace('hf://', _HUB)} into a "
        "directory and pass its path"
    )


def _cached_weights() -> list[str]:
    """Return the repositories of the Hub whose weights are in the cache."""
    import huggingface_hub  # noqa: PLC0415  (an optional extra)

    directory = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE)
    names = (path.name.split("--") for path in sorted(directory.glob("models--*")))
    repositories = ("/".join(name[1:]) for name in names)
    return [
        f"hf://{repository}"
        for repository in repositories
        if any(_cached(repository, file_name) for file_name in HUB_FILES)
    ]
