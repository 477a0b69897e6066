"""Self-contained HTML pages: one file that asks nothing of the network, with the look that all our pages share.

    html = page("Title", "<main>…</main>", styles=["explorer.css"], scripts=["explorer.js"], data={"runs": […]})

Styles and scripts are files in this folder. `page.css` is the shared look: colours in light and dark, type, cards,
tables, controls. Leaves out what the pages show (`explorer.py`, `report.py`).
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What the browser lets a page load: its own text, nothing else."""


def page(
    title: str,
    body: str,
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> str:
    """A whole HTML document.

    Args:
        title: plain text. body: HTML; pass text of users through `escaped`.
        styles, scripts: files in this folder, after `page.css`.
        data: values that JSON has, for scripts: `JSON.parse(document.getElementById(name).textContent)`.
    """
    values = "\n".join(
        f'<script type="application/json" id="{escaped(name)}">{_json(value)}</script>'
        for name, value in (data or {}).items()
    )
    css = "\n".join(text_of(name) for name in ("page.css", *styles))
    code = "\n".join(f"<script>\n{text_of(name)}</script>" for name in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escaped(title)}</title>
<style>
{css}</style>
</head>
<body>
{body}
{values}
{code}
</body>
</html>
"""


def escaped(text: object) -> str:
    """Plain text as HTML, also within an attribute."""
    return html.escape(str(text))


def text_of(name: str) -> str:
    """A file in this folder."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that no browser takes for the end of the script. NaN and infinity are an error: JSON has neither."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
