"""Downloads that fail in the field: proxies, truncated files, error pages, no network."""

import http.server
import json
import os
import pathlib
import time

import numpy as np
import pytest
import safetensors.numpy

from convit_jax.errors import InputError, MachineError
from convit_jax.weights import open_weights
from tests.field.weight_files import put_into_hub_cache, timm_config


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each path with its (status, headers, content) in `server.answers`."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        status, headers, content = self.server.answers.get(self.path, (404, {}, b"not here"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(serve):
    """A server, initially without answers, and an empty cache."""
    running = serve(Handler)
    running.answers = {}
    return running


@pytest.fixture
def file_content(reference_data):
    return (reference_data / "four_heads.safetensors").read_bytes()


def cached_files(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "status", "content", "message"),
    [
        ("half.safetensors", 200, None, "is not a whole .safetensors file"),
        ("page.safetensors", 200, b"<!DOCTYPE html>sign in", "is a web page"),
        ("error.safetensors", 200, b'{"error": "gone"}', "is a message in JSON"),
        ("text.safetensors", 200, b"try again later, please", "is not a whole"),
        ("nothing.safetensors", 200, b"", "is empty"),
        ("forbidden.safetensors", 403, b"no", "could not be fetched: .*403"),
        ("page.pth", 200, b"<html>sign in</html>", "is a web page"),
        ("half.pth", 200, b"PK\x03\x04" + bytes(100), "is not a whole PyTorch file"),
    ],
)
def test_incomplete_files_are_reported_and_never_cached(
    name, status, content, message, server, file_content, tmp_path
):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="PyTorch is an optional extra")
    content = file_content[: len(file_content) // 2] if content is None else content
    server.answers[f"/{name}"] = (status, {}, content)  # no Content-Length
    for _ in range(2):
        with pytest.raises(InputError, match=message) as error:
            open_weights(f"{server.address}/{name}")
        assert len(str(error.value).splitlines()) == 1
    assert cached_files(tmp_path) == []
    server.answers[f"/{name}"] = (200, {}, file_content)
    if name.endswith(".safetensors"):
        assert open_weights(f"{server.address}/{name}").num_classes() == 10


@pytest.mark.parametrize("headers", [{"Content-Length": "many"}, {"Location": "nowhere"}])
def test_invalid_headers_are_reported(headers, server, file_content):
    status = 302 if "Location" in headers else 200
    server.answers["/x.safetensors"] = (status, headers, file_content)
    with pytest.raises(InputError, match="could not be fetched"):
        open_weights(f"{server.address}/x.safetensors")


def test_a_proxy_that_answers_403(server, monkeypatch):
    server.answers["example.invalid:443"] = (403, {}, b"")
    monkeypatch.setenv("https_proxy", server.address)
    monkeypatch.setattr("urllib.request._opener", None)  # it caches proxies
    with pytest.raises(InputError, match=r"x\.safetensors could not be fetched: .*403"):
        open_weights("https://example.invalid/x.safetensors")


def test_an_unknown_host(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"x\.safetensors could not be fetched: "):
        open_weights("http://example.invalid/x.safetensors")


def test_a_damaged_cached_file_is_named_with_its_path(server, file_content, tmp_path):
    server.answers["/x.safetensors"] = (200, {}, file_content)
    address = f"{server.address}/x.safetensors"
    open_weights(address)
    (cached,) = cached_files(tmp_path)
    cached.write_bytes(file_content[:1000])
    with pytest.raises(InputError, match=rf"not a whole .*remove .*{cached}|{cached}.* remove"):
        open_weights(address)
    cached.unlink()
    open_weights(address)


def test_a_full_disk_is_a_machine_error(server, file_content, monkeypatch):
    server.answers["/x.safetensors"] = (200, {}, file_content)

    def fail(self, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(MachineError, match="no space is left"):
        open_weights(f"{server.address}/x.safetensors")


# The Hub
@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The server as a Hub, with an empty cache: a function that puts a file into a repository."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    missing = {"X-Repo-Commit": "0" * 40, "X-Error-Code": "EntryNotFound"}

    def put(file, content):
        headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{abs(hash(file))}"',
                   "Content-Length": str(len(content))}  # fmt: skip
        server.answers[f"/org/name/resolve/main/{file}"] = (200, headers, content)
        server.answers[f"/org/name/resolve/{'0' * 40}/{file}"] = (200, headers, content)

    for file in ("config.json", "model.safetensors", "model.safetensors.index.json",
                 "pytorch_model.bin", "pytorch_model.bin.index.json"):  # fmt: skip
        server.answers[f"/org/name/resolve/main/{file}"] = (404, missing, b"")
    return put


def test_a_hub_model_has_its_config_and_is_cached(hub, server, file_content):
    hub("model.safetensors", file_content)
    hub("config.json", json.dumps(timm_config()).encode())
    for _ in range(2):
        weights = open_weights("hf://org/name")
        assert weights.card.mean == (0.5, 0.5, 0.5)
        requests, server.requests = list(server.requests), []
    assert requests == []


def test_a_hub_model_in_shards(hub, reference_data):
    tensors = safetensors.numpy.load_file(reference_data / "four_heads.safetensors")
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    hub("model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name, shard in weight_map.items() if shard == file}
        hub(file, safetensors.numpy.save(part))
    weights = open_weights("hf://org/name")
    assert all(np.array_equal(weights.tensors[name], array) for name, array in tensors.items())


def test_a_repository_without_weights_is_reported_with_the_expected_names(hub):
    with pytest.raises(
        InputError, match=r"name: no model\.safetensors or .*bin.* in the repository 'org/name'"
    ):
        open_weights("hf://org/name")


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A Hub that refuses every connection; returns the path of its cache."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    from huggingface_hub import constants

    address = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return tmp_path


def test_offline_cached_files_are_used_at_once(unreachable, reference_data, capfd, caplog):
    put_into_hub_cache(unreachable, "org/name", reference_data / "four_heads.safetensors")
    begun = time.monotonic()
    open_weights("hf://org/name").architecture()
    assert time.monotonic() - begun < 10  # the retries of huggingface_hub take longer
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_offline_files_that_are_not_cached_are_reported(unreachable, capfd, caplog):
    with pytest.raises(InputError, match=r"hf://org/name: huggingface\.co cannot be reached"):
        open_weights("hf://org/name")
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_a_damaged_file_in_the_hubs_cache_is_named(unreachable, reference_data):
    file = reference_data / "four_heads.safetensors"
    cached = put_into_hub_cache(unreachable, "org/name", file)
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"is not a whole .*{cached}: remove"):
        open_weights("hf://org/name")
