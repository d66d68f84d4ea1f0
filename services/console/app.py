"""The console as a Starlette application: routes to pages, pages to HTML; every handler runs on a thread."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from services.console import draw, numbers, overview, search, user, why
from services.console.backend import Backend
from services.console.events import KINDS
from services.console.guard import Guard
from services.console.inputs import InputError, a_count, an_id, one_of
from services.console.recall import SLIDER
from services.console.shown import etag, image_type
from services.console.trouble import Trouble
from services.console.uploads import MAX_BYTES, shrink

_HERE = Path(__file__).parent
_FORM_BYTES = 64 << 10  # around an uploaded photo

T = TypeVar("T")


class Console:
    """Handlers, one a route; `application` is what a server runs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for name in ("whole", "money", "percent", "seconds", "rate", "size", "figure", "when", "short"):
            self._templates.filters[name] = getattr(numbers, name)
        self._templates.globals.update(
            asset=_fingerprint(_HERE / "static"), bar=draw.bar, slider=SLIDER, namespace=backend.config.namespace
        )
        self.application = Starlette(
            routes=[
                Route("/", self.home),
                Route("/search", self.search_page),
                Route("/search/results", self.results),
                Route("/search/upload", self.upload, methods=["POST"]),
                Route("/user", self.choose_user),
                Route("/user/{user_id}", self.user_page),
                Route("/user/{user_id}/live", self.live),
                Route("/user/{user_id}/events", self.fire, methods=["POST"]),
                Route("/why", self.why_page),
                Route("/system", self.system_page),
                Route("/system/now", self.now),
                Route("/system/artifacts", self.artifacts),
                Route("/system/letters", self.letters),
                Route("/photos/{item}", self.photo),
                Route("/uploads/{token}", self.uploaded),
                Mount("/static", StaticFiles(directory=_HERE / "static"), name="static"),
            ],
            middleware=[Middleware(Guard)],
            exception_handlers={HTTPException: self._refuse, Exception: self._fail},
            max_body_size=MAX_BYTES + _FORM_BYTES,
        )

    # Search

    def home(self, request: Request) -> Response:
        return RedirectResponse("/search", 303)

    def search_page(self, request: Request) -> Response:
        photos, given = self._backend.photos.current, request.query_params
        page, query, wrong = 0, search.Query(), None
        try:
            page = a_count("page", given.get("page", "0"), 0, search.PAGES)
            query = _query(request)
        except InputError as error:
            wrong = _wrong(error)
        grid = search.grid(photos, page)
        if not query.item and not query.upload and grid:
            query = search.Query(grid[0][0], "", query.over_recall)
        results, trouble = None, None
        if query.item or query.upload or self._backend.ann is None:
            results, trouble = _try(lambda: search.answer(self._backend, query))
        return self._page(
            request,
            "search.html",
            "Search",
            trouble=trouble,
            wrong=wrong,
            query=query,
            results=results,
            grid=grid,
            page_number=page,
            has_photo=bool(photos and query.item and photos.has(query.item)),
            category=photos.category(query.item) if photos and query.item else "",
            over_recall=results.query.over_recall if results else query.over_recall or 10,
            photos_trouble=self._backend.photos.trouble,
            **self._measuring(request, results),
        )

    def results(self, request: Request) -> Response:
        query, trouble = _try(lambda: _query(request))
        results = None
        if query is not None:
            results, trouble = _try(lambda: search.answer(self._backend, query))
        if results is None:
            return self._fragment_trouble(trouble)
        response = self._fragment("results.html", results=results, **self._measuring(request, results))
        asked = f"upload={results.query.upload}" if results.query.upload else f"item={results.query.item}"
        response.headers["HX-Replace-Url"] = f"/search?{asked}&over_recall={results.query.over_recall}"
        return response

    async def upload(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=4, max_part_size=4 << 10) as form:
            photo = form.get("photo")
            data = b"" if photo is None or isinstance(photo, str) else await photo.read()
        kept, trouble = await run_in_threadpool(lambda: _try(lambda: self._backend.uploads.keep(shrink(data))))
        if trouble is not None:
            return await run_in_threadpool(self._trouble, request, trouble, "Search", "/search")
        return RedirectResponse(f"/search?upload={kept}", 303)

    def _measuring(self, request: Request, results: search.Results | None) -> dict[str, Any]:
        """Whether the recall curve is on its way, and the same question again."""
        photos = self._backend.photos.current
        soon = bool(results and photos and not results.chart and photos.version == results.stats.embeddings_version)
        asked = results.query if results else search.Query()
        again = f"upload={asked.upload}" if asked.upload else f"item={asked.item}"
        return {"measuring": soon and len(photos.held_out) > 0, "again": f"{again}&over_recall={asked.over_recall}"}

    # User

    def choose_user(self, request: Request) -> Response:
        text = request.query_params.get("id", "")
        if not text:
            return self._page(
                request, "user.html", "User", user_id=0, user=None, some=user.some_users(self._backend)
            )
        user_id, trouble = _try(lambda: an_id("user", text))
        if trouble is not None:
            return self._page(request, "user.html", "User", wrong=trouble, user_id=0, user=None, some=[])
        return RedirectResponse(f"/user/{user_id}", 303)

    def user_page(self, request: Request) -> Response:
        user_id, trouble = _try(lambda: an_id("user", request.path_params["user_id"]))
        seen = None
        if user_id:
            seen, trouble = _try(
                lambda: user.view(self._backend, user_id, request.query_params.get("fired", "")[:64])
            )
        return self._show_user(request, user_id or 0, seen, trouble)

    def live(self, request: Request) -> Response:
        seen, trouble = _try(
            lambda: user.view(
                self._backend,
                an_id("user", request.path_params["user_id"]),
                request.query_params.get("fired", "")[:64],
            )
        )
        if trouble is not None:
            return self._fragment_trouble(trouble)
        return self._fragment("live.html", user=seen, crowd_names=self._crowd_names())

    async def fire(self, request: Request) -> Response:
        async with request.form(max_files=0, max_fields=8, max_part_size=1 << 10) as form:
            given = {key: str(value) for key, value in form.items()}
        return await run_in_threadpool(self._fire, request, given)

    def _fire(self, request: Request, given: dict[str, str]) -> Response:
        def sent() -> tuple[str, user.UserView]:
            user_id = an_id("user", request.path_params["user_id"])
            kind = one_of("kind", given.get("kind", ""), KINDS)
            target = user.target_of(self._backend, kind, given.get(KINDS[kind][0], ""))
            return user.fire(self._backend, user_id, kind, target)

        done, trouble = _try(sent)
        if trouble is not None:
            if not _by_htmx(request):
                return self._trouble(request, trouble, "User", "/user")
            # The list stays; the message goes above it.
            response = self._fragment_trouble(trouble)
            response.headers.update({"HX-Retarget": "#live", "HX-Reswap": "beforebegin"})
            return response
        assert done is not None
        token, seen = done
        if not _by_htmx(request):
            return RedirectResponse(f"/user/{seen.user_id}?fired={token}", 303)
        return self._fragment("live.html", user=seen, crowd_names=self._crowd_names())

    def _show_user(self, request: Request, user_id: int, seen: Any, trouble: Trouble | None) -> Response:
        return self._page(
            request,
            "user.html",
            "User",
            trouble=trouble,
            user_id=user_id,
            user=seen,
            some=[],
            crowd_names=self._crowd_names(),
        )

    def _crowd_names(self) -> list[tuple[int, str]]:
        names = self._backend.names.current
        return names.crowds_by_size if names else []

    # Why

    def why_page(self, request: Request) -> Response:
        given = request.query_params
        user_text, ad_text = given.get("user", "").strip()[:40], given.get("ad", "").strip()[:200]
        names = self._backend.names.current
        seen = trouble = wrong = found = None
        try:
            if user_text and ad_text and not ad_text.isdigit() and names is not None:
                an_id("user", user_text)
                found = names.find_ads(ad_text, why.MOST_FOUND)
            elif user_text or ad_text:
                user_id, ad = an_id("user", user_text), an_id("ad", ad_text)
                seen, trouble = _try(lambda: why.view(self._backend, user_id, ad))
        except InputError as error:
            wrong = _wrong(error)
        return self._page(
            request,
            "why.html",
            "Why",
            trouble=trouble,
            wrong=wrong,
            why=seen,
            found=found,
            user_text=user_text,
            ad_text=ad_text,
        )

    # System

    def system_page(self, request: Request) -> Response:
        return self._page(
            request,
            "system.html",
            "System",
            now=overview.now(self._backend),
            shelved=overview.artifacts(self._backend),
        )

    def now(self, request: Request) -> Response:
        return self._fragment("now.html", now=overview.now(self._backend))

    def artifacts(self, request: Request) -> Response:
        return self._fragment("artifacts.html", shelved=overview.artifacts(self._backend))

    def letters(self, request: Request) -> Response:
        box, trouble = overview.letters(self._backend)
        return self._fragment("letters.html", box=box, trouble=trouble)

    # Pictures

    def photo(self, request: Request) -> Response:
        photos = self._backend.photos.current
        try:
            image = photos.image(an_id("item", request.path_params["item"])) if photos else None
        except InputError:
            image = None
        if photos is None or image is None:
            return Response("no such photo", 404, media_type="text/plain")
        for_good = request.query_params.get("v") == photos.version
        return _picture(request, image, "max-age=31536000, immutable" if for_good else "max-age=60")

    def uploaded(self, request: Request) -> Response:
        try:
            image = self._backend.uploads.get(request.path_params["token"])
        except InputError as error:
            return Response(str(error), 404, media_type="text/plain")
        return _picture(request, image, "max-age=3600, immutable")

    # Answers

    def _page(self, request: Request, template: str, page: str, **context: Any) -> Response:
        photos = self._backend.photos.current
        trouble = context.get("wrong") or context.get("trouble")
        shared = {"trouble": None, "wrong": None, "fragment": False, "open": True, "caller": "", "bare": False}
        shared |= {"page": page, "photos_version": photos.version if photos else ""}
        html = self._templates.get_template(template).render(shared | context)
        return HTMLResponse(html, trouble.status if trouble else 200, headers={"Cache-Control": "no-store"})

    def _fragment(self, template: str, **context: Any) -> Response:
        photos = self._backend.photos.current
        shared = {"fragment": True, "photos_version": photos.version if photos else ""}
        html = self._templates.get_template(template).render(shared | context)
        return HTMLResponse(html, headers={"Cache-Control": "no-store"})

    def _trouble(self, request: Request, trouble: Trouble, page: str = "", back: str = "") -> Response:
        return self._page(request, "trouble.html", page, trouble=trouble, back=back)

    def _fragment_trouble(self, trouble: Trouble | None) -> Response:
        assert trouble is not None
        html = self._templates.get_template("fragment_trouble.html").render(trouble=trouble)
        return HTMLResponse(html, trouble.status, headers={"Cache-Control": "no-store"})

    def _refuse(self, request: Request, error: Any) -> Response:
        titles = {404: "No such page", 405: "Not like this", 413: "Too large"}
        text = (
            f"photo: more than {MAX_BYTES >> 20} MiB; send a smaller copy"
            if error.status_code == 413
            else error.detail
        )
        return self._trouble(request, Trouble(titles.get(error.status_code, "Refused"), text, error.status_code))

    def _fail(self, request: Request, error: Exception) -> Response:
        text = "The console's log has the reason. Nothing was changed by looking."
        return self._trouble(request, Trouble("Something broke here", text, 500))


def _try(act: Callable[[], T]) -> tuple[T | None, Trouble | None]:
    try:
        return act(), None
    except InputError as error:
        return None, _wrong(error)
    except Trouble as trouble:
        return None, trouble


def _wrong(error: InputError) -> Trouble:
    return Trouble("This cannot be used", str(error), 400)


def _query(request: Request) -> search.Query:
    given = request.query_params
    over_recall = a_count("over_recall", given.get("over_recall", "0") or "0", 0, 100)
    if given.get("upload"):
        return search.Query(0, given["upload"][:64], over_recall)
    return search.Query(an_id("item", given["item"]) if given.get("item") else 0, "", over_recall)


def _by_htmx(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"


def _picture(request: Request, image: bytes, caching: str) -> Response:
    headers = {"ETag": etag(image), "Cache-Control": f"private, {caching}"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(image, media_type=image_type(image), headers=headers)


def _fingerprint(folder: Path) -> str:
    """Of the style sheet and scripts, so that a browser never mixes two versions."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
