"""Self-contained HTML pages from the templates in this directory."""

import base64
from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("convit_jax", "analysis"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "svg": "image/svg+xml", "csv": "text/csv"}


def render_page(template: str, **values: Any) -> str:
    """Return the page of a template, such as `report.html.j2`, with values by name."""
    return _TEMPLATES.get_template(template).render(**values)


def data_url(data: bytes, kind: str) -> str:
    """Return the URL that contains a png, jpeg, svg or csv file."""
    return f"data:{_MEDIA_TYPES[kind]};base64,{base64.b64encode(data).decode()}"
