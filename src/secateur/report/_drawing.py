"""Write a chart as a picture and as a page that opens offline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..extras import require
from ..files import replacing


def write_chart(
    specification: Mapping[str, Any],
    path_png: str | os.PathLike[str] | None,
    path_html: str | os.PathLike[str] | None,
    *,
    purpose: str,
) -> None:
    """Write a Vega-Lite chart: a picture at twice the size on the page, a page with all scripts in it, or neither.

    Raises:
        MissingExtra: vl-convert-python is not installed.
    """
    vl_convert = require("vl_convert", extra="report", purpose=purpose)
    if path_png is not None:
        _write(path_png, vl_convert.vegalite_to_png(dict(specification), scale=2))
    if path_html is not None:
        page = vl_convert.vegalite_to_html(dict(specification), bundle=True, renderer="svg")
        _write(path_html, page.encode())


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file in one step, so that a kill leaves the old one or the new one."""
    with replacing(path) as partial:
        partial.write_bytes(content)
