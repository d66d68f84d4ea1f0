"""The console as a Starlette application: a handler a route, each on a thread of its own."""

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from services.console import overview, search, user, why
from services.console.backend import Backend
from services.console.events import KINDS
from services.console.gate import MOST_BODY_BYTES, Gate, SignIn
from services.console.guard import Guard
from services.console.inputs import InputError, a_count, an_id, one_of
from services.console.render import HERE, Renderer, by_htmx
from services.console.sessions import Sessions
from services.console.shown import etag, image_type
from services.console.trouble import Trouble
from services.console.uploads import shrink
from vitrine.runtime.callers import Callers

T = TypeVar("T")


class Console:
    """Handlers, one a route; `application` is what a server runs."""

    def __init__(self, backend: Backend, callers: Callers | None = None) -> None:
        self._backend, self._open = backend, callers is None
        self._render = Renderer(backend, open=self._open)
        sessions = Sessions(backend.config.session_s)
        self._sign_in = SignIn(callers, sessions)
        pages = Starlette(
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
                Route("/sign-in", self.sign_in_page),
                Route("/sign-in", self.sign_in, methods=["POST"]),
                Route("/sign-out", self.sign_out, methods=["POST"]),
                Route("/photos/{item}", self.photo),
                Route("/uploads/{token}", self.uploaded),
                Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
            ],
            middleware=[Middleware(Gate, callers, sessions, backend.config.host, self._render.trouble)],
            exception_handlers={HTTPException: self._refuse, Exception: self._fail},
            max_body_size=2 * MOST_BODY_BYTES,  # of a body that does not say how long it is; others end at the gate
        )
        self.application = Guard(pages)

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
        return self._render.page(
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
        )

    def results(self, request: Request) -> Response:
        results, trouble = _try(lambda: search.answer(self._backend, _query(request)))
        if results is None:
            return self._render.trouble(request, trouble or Trouble("", ""))
        response = self._render.fragment("results.html", results=results)
        response.headers["HX-Replace-Url"] = f"/search?{results.query.url}"
        return response

    async def upload(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=4, max_part_size=4 << 10) as form:
            photo = form.get("photo")
            data = b"" if photo is None or isinstance(photo, str) else await photo.read()
        kept, trouble = await run_in_threadpool(lambda: _try(lambda: self._backend.uploads.keep(shrink(data))))
        if trouble is not None:
            return await run_in_threadpool(self._render.trouble, request, trouble, "Search", "/search")
        return RedirectResponse(f"/search?upload={kept}", 303)

    # User

    def choose_user(self, request: Request) -> Response:
        text = request.query_params.get("id", "")
        if not text:
            some = user.some_users(self._backend)
            return self._render.page(request, "user.html", "User", user_id=0, user=None, some=some)
        user_id, trouble = _try(lambda: an_id("user", text))
        if trouble is not None:
            return self._render.page(request, "user.html", "User", wrong=trouble, user_id=0, user=None, some=[])
        return RedirectResponse(f"/user/{user_id}", 303)

    def user_page(self, request: Request) -> Response:
        user_id, trouble = _try(lambda: an_id("user", request.path_params["user_id"]))
        seen = None
        if user_id:
            fired = request.query_params.get("fired", "")[:64]
            seen, trouble = _try(lambda: user.view(self._backend, user_id, fired))
        names = self._crowd_names()
        shown = {"user_id": user_id or 0, "user": seen, "some": [], "crowd_names": names}
        return self._render.page(request, "user.html", "User", trouble=trouble, **shown)

    def live(self, request: Request) -> Response:
        def seen() -> user.UserView:
            user_id = an_id("user", request.path_params["user_id"])
            return user.view(self._backend, user_id, request.query_params.get("fired", "")[:64])

        return self._live(request, *_try(seen))

    async def fire(self, request: Request) -> Response:
        async with request.form(max_files=0, max_fields=8, max_part_size=1 << 10) as form:
            given = {key: str(value) for key, value in form.items()}
        return await run_in_threadpool(self._fire, request, given)

    def _fire(self, request: Request, given: dict[str, str]) -> Response:
        def sent() -> user.UserView:
            user_id = an_id("user", request.path_params["user_id"])
            kind = one_of("kind", given.get("kind", ""), KINDS)
            target = user.target_of(self._backend, kind, given.get(KINDS[kind][0], ""))
            return user.fire(self._backend, user_id, kind, target, request.scope.get("caller", ""))

        seen, trouble = _try(sent)
        if seen is not None and not by_htmx(request):
            return RedirectResponse(f"/user/{seen.user_id}?fired={seen.token}", 303)
        return self._live(request, seen, trouble)

    def _live(self, request: Request, seen: user.UserView | None, trouble: Trouble | None) -> Response:
        if trouble is not None:
            return self._render.trouble(request, trouble, "User", "/user")
        return self._render.fragment("live.html", user=seen, crowd_names=self._crowd_names())

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
        shown = {"why": seen, "found": found, "user_text": user_text, "ad_text": ad_text}
        return self._render.page(request, "why.html", "Why", trouble=trouble, wrong=wrong, **shown)

    # System

    def system_page(self, request: Request) -> Response:
        now, shelved = overview.now(self._backend), overview.artifacts(self._backend)
        return self._render.page(request, "system.html", "System", now=now, shelved=shelved)

    def now(self, request: Request) -> Response:
        return self._render.fragment("now.html", now=overview.now(self._backend))

    def artifacts(self, request: Request) -> Response:
        return self._render.fragment("artifacts.html", shelved=overview.artifacts(self._backend))

    def letters(self, request: Request) -> Response:
        box, trouble = overview.letters(self._backend)
        return self._render.fragment("letters.html", box=box, trouble=trouble)

    # Sign-in

    def sign_in_page(self, request: Request) -> Response:
        if self._open:
            return RedirectResponse("/search", 303)
        wanted = request.query_params.get("next", "")[:600]
        return self._render.page(request, "sign_in.html", "", bare=True, next=wanted)

    async def sign_in(self, request: Request) -> Response:
        async with request.form(max_files=0, max_fields=4, max_part_size=1 << 10) as form:
            token, wanted = str(form.get("token", ""))[:512], str(form.get("next", ""))[:600]
        answer, trouble = _try(lambda: self._sign_in.sign_in(request, token, wanted))
        if answer is not None:
            return answer
        return self._render.page(request, "sign_in.html", "", bare=True, next=wanted, trouble=trouble)

    def sign_out(self, request: Request) -> Response:
        return self._sign_in.sign_out(request)

    # Pictures

    def photo(self, request: Request) -> Response:
        photos = self._backend.photos.current
        item, _ = _try(lambda: an_id("item", request.path_params["item"]))
        image = photos.image(item) if photos and item else None
        if photos is None or image is None:
            return Response("no such photo", 404, media_type="text/plain")
        for_good = request.query_params.get("v") == photos.version
        return _picture(request, image, "max-age=31536000, immutable" if for_good else "max-age=60")

    def uploaded(self, request: Request) -> Response:
        image, trouble = _try(lambda: self._backend.uploads.get(request.path_params["token"]))
        if image is None:
            return Response(trouble.text if trouble else "", 404, media_type="text/plain")
        return _picture(request, image, "max-age=3600, immutable")

    # What goes wrong

    def _refuse(self, request: Request, error: Any) -> Response:
        titles = {404: "No such page", 405: "Not like this"}
        text = "There is nothing at this address." if error.status_code == 404 else error.detail
        trouble = Trouble(titles.get(error.status_code, "Refused"), text, error.status_code)
        return self._render.trouble(request, trouble)

    def _fail(self, request: Request, error: Exception) -> Response:
        text = "The console's log has the reason. Try again, or look at the System page."
        return self._render.trouble(request, Trouble("Something broke here", text, 500))


def _try(act: Callable[[], T]) -> tuple[T | None, Trouble | None]:
    """(what `act` gives, None), or (None, what a page says in its place)."""
    try:
        return act(), None
    except InputError as error:
        return None, _wrong(error)
    except Trouble as trouble:
        return None, trouble


def _wrong(error: InputError) -> Trouble:
    return Trouble("This cannot be used", str(error), 400)


def _query(request: Request) -> search.Query:
    """Raises InputError."""
    given = request.query_params
    over_recall = a_count("over_recall", given.get("over_recall") or "0", 0, 100)
    if given.get("upload"):
        return search.Query(0, given["upload"][:64], over_recall)
    return search.Query(an_id("item", given["item"]) if given.get("item") else 0, "", over_recall)


def _picture(request: Request, image: bytes, caching: str) -> Response:
    headers = {"ETag": etag(image), "Cache-Control": f"private, {caching}"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(image, media_type=image_type(image), headers=headers)
