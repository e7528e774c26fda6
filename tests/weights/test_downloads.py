"""Downloaded weights: from a local server, and from the Hub's cache without a network."""

import functools
import http.server
import pathlib

import pytest

from convit_jax.errors import InputError
from convit_jax.weights import open_weights
from convit_jax.weights.downloads import fetch


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; responses to /short… are cut off, /page… is a web page."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith(("/short", "/page")):
            content = b"<!DOCTYPE html> sign in" if self.path.startswith("/page") else b"12345"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + 100 * ("short" in self.path)))
            self.end_headers()
            self.wfile.write(content)
            return
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(reference_data, serve):
    """A server of tests/data; the requested paths are in `asked`."""
    return serve(functools.partial(Handler, directory=str(reference_data)))


def test_a_file_is_fetched_once(server, assert_agrees, tmp_path):
    address = f"{server.address}/four_heads.safetensors"
    assert_agrees(open_weights(address).model())
    open_weights(address)
    assert server.requests == ["/four_heads.safetensors"]
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.name for path in cached] == ["four_heads.safetensors"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.safetensors", "could not be fetched: .*404|could not be fetched: File not found"),
        ("short.safetensors", "connection broke after 5 of 105 bytes"),
        ("page.safetensors", "is a web page, not weights"),
        ("weights.zip", "expected a file that ends in .safetensors"),
    ],
)
def test_failed_downloads_are_reported_and_not_cached(server, path, message, tmp_path):
    with pytest.raises(InputError, match=message):
        open_weights(f"{server.address}/{path}")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_server_that_refuses_connections_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"could not be fetched: .*[Rr]efused"):
        fetch("http://127.0.0.1:9/x.safetensors")


def test_a_hub_model_is_loaded_from_the_cache_without_a_network(hub, reference_data, assert_agrees):
    hub("timm/convit_four.fb_in1k", reference_data / "four_heads.safetensors")
    assert_agrees(open_weights("hf://timm/convit_four.fb_in1k").model())
    path = fetch("hf://timm/convit_four.fb_in1k/model.safetensors")
    assert pathlib.Path(path).name == "model.safetensors"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://timm/convit_tiny.fb_in1k", "cannot be reached, and its cache here has no model.saf"),
        ("hf://timm", "expected hf://ORG/NAME"),
        ("hf://timm/a b", "could not be fetched"),
    ],
)
def test_what_is_not_on_the_hub_is_reported(hub, name, message):
    with pytest.raises(InputError, match=message):
        open_weights(name)


def test_without_huggingface_hub_the_message_says_what_to_install(monkeypatch):
    from convit_jax.weights import downloads

    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        open_weights("hf://timm/convit_tiny.fb_in1k")
