"""Pages and fragments as HTML: the templates, and what all of them know."""

import hashlib
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from services.console import draw, numbers
from services.console.backend import Backend
from services.console.recall import SLIDER
from services.console.trouble import Trouble

HERE = Path(__file__).parent
_FRESH = {"Cache-Control": "no-store"}


class Renderer:
    """Fills templates. open: everybody may call, since there is no file of callers"""

    def __init__(self, backend: Backend, *, open: bool) -> None:
        self._backend, self._open = backend, open
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for name in ("whole", "money", "percent", "seconds", "rate", "size", "figure", "when", "short"):
            self._templates.filters[name] = getattr(numbers, name)
        self._templates.globals.update(
            asset=_fingerprint(HERE / "static"),
            bar=draw.bar,
            slider=SLIDER,
            namespace=backend.config.namespace,
        )

    def page(self, request: Request, template: str, page: str, **context: Any) -> Response:
        """A whole page; `trouble` or `wrong` in the context gives the status. page: its name in the navigation"""
        shared = {
            "trouble": None,
            "wrong": None,
            "fragment": False,
            "bare": False,
            "open": self._open,
            "page": page,
            "caller": request.scope.get("caller", ""),
            "signed_in": request.scope.get("signed_in", False),
            "photos_version": self._photos_version,
        }
        trouble = context.get("wrong") or context.get("trouble")
        html = self._templates.get_template(template).render(shared | context)
        return HTMLResponse(html, trouble.status if trouble else 200, headers=_FRESH)

    def fragment(self, template: str, **context: Any) -> Response:
        """A part of a page, for htmx."""
        shared = {"fragment": True, "photos_version": self._photos_version}
        return HTMLResponse(self._templates.get_template(template).render(shared | context), headers=_FRESH)

    def trouble(self, request: Request, trouble: Trouble, page: str = "", back: str = "") -> Response:
        """A message in place of a page, or of a fragment where htmx asked."""
        if by_htmx(request):
            html = self._templates.get_template("fragment_trouble.html").render(trouble=trouble)
            # What is on the page stays; the message stands above it.
            headers = _FRESH | {"HX-Retarget": "#trouble", "HX-Reswap": "innerHTML"}
            return HTMLResponse(html, trouble.status, headers=headers)
        return self.page(request, "trouble.html", page, trouble=trouble, back=back)

    @property
    def _photos_version(self) -> str:
        photos = self._backend.photos.current
        return photos.version if photos else ""


def by_htmx(request: Request) -> bool:
    """Whether a fragment is wanted, not a page."""
    return request.headers.get("hx-request") == "true"


def _fingerprint(folder: Path) -> str:
    """Of the style sheet and scripts, so that a browser never mixes two versions."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
