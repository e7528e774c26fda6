"""Weights from elsewhere: fetched once and kept."""

import hashlib
import importlib.util
import logging
import os
import pathlib
import shutil
import urllib.error
import urllib.parse
import urllib.request

from convit_jax.cache import cache_directory
from convit_jax.errors import InputError, first_line
from convit_jax.weights.files import SUFFIXES, refuse_web_page

log = logging.getLogger(__name__)

# What timm's repositories call their weights, the safe format first.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_TIMEOUT = 60  # seconds without an answer


def fetch(name: str) -> pathlib.Path:
    """The local copy of a file at `https://…` or of a model at `hf://ORG/NAME[/FILE]`.

    What was fetched before is not fetched again, and needs no network.

    Raises:
        InputError: it is not there, the network is not, or what came is not whole.
    """
    return _from_hub(name) if name.startswith("hf://") else _from_web(name)


def _from_web(url: str) -> pathlib.Path:
    file_name = pathlib.PurePosixPath(urllib.parse.urlparse(url).path).name
    if not file_name.endswith(SUFFIXES):
        raise InputError(f"{url}: expected a file that ends in {', '.join(SUFFIXES)}")
    # Two addresses may end in the same name.
    place = hashlib.sha256(url.encode()).hexdigest()[:16]
    kept = cache_directory() / "weights" / place / file_name
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f"{file_name}.{os.getpid()}.part")
    log.info("fetching %s to %s", url, kept)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
            expected = answer.headers.get("Content-Length")
        if expected is not None and partial.stat().st_size != int(expected):
            raise InputError(
                f"{url}: the connection broke after {partial.stat().st_size} of {expected} bytes; "
                "try again"
            )
        with partial.open("rb") as file:
            refuse_web_page(file.read(256), url)
        partial.rename(kept)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{url} could not be fetched: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
    return kept


def _from_hub(name: str) -> pathlib.Path:
    parts = name.removeprefix("hf://").split("/")
    if len(parts) < 2 or not all(parts):
        raise InputError(f"{name}: expected hf://ORG/NAME, such as hf://timm/convit_tiny.fb_in1k")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{name} takes another package to fetch: pip install huggingface_hub")
    # Imported here: an optional extra.
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    repository, inside = "/".join(parts[:2]), "/".join(parts[2:])
    unreachable: Exception | None = None
    for file_name in (inside,) if inside else _HUB_FILES:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file_name))
        except errors.LocalEntryNotFoundError as error:
            unreachable = error  # another file may be in the cache
        except errors.EntryNotFoundError:
            continue
        except errors.RepositoryNotFoundError as error:
            raise InputError(
                f"{name}: no public repository '{repository}' on huggingface.co"
            ) from error
        except (errors.HFValidationError, OSError) as error:
            line = first_line(error)
            raise InputError(f"{name} could not be fetched: {line}") from error
    wanted = inside or " or ".join(_HUB_FILES)
    if unreachable:
        raise InputError(
            f"{name}: huggingface.co cannot be reached, and its cache here has no {wanted}"
        ) from unreachable
    raise InputError(f"{name}: there is no {wanted} in the repository '{repository}'")
