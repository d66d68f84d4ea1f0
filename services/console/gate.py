"""Who may look and who may fire events: tokens of VITRINE_CALLERS, by header or by a signed-in session."""

import ipaddress
import math
import re
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.console.sessions import Session, Sessions
from services.console.trouble import Trouble
from services.console.uploads import MAX_BYTES
from vitrine.runtime import audit
from vitrine.runtime.callers import Bucket, Callers, Refused

MOST_BODY_BYTES = MAX_BYTES + (64 << 10)  # an uploaded photo, and the form around it
READ, EVENTS = "console/read", "console/events"

_FREE = ("/static/", "/sign-in", "/sign-out")
_PARTS_OF_A_PAGE = ("/photos/", "/uploads/")  # not calls of their own: a page's one call has paid for them
_NEXT = re.compile(r"/(search|user|why|system)([/?][\x21-\x5b\x5d-\x7e]{0,500})?")  # no backslash

_TOLD: dict[str, tuple[str, str, int]] = {
    "no_token": ("Not signed in", "Give a token.", 401),
    "wrong_token": ("Not signed in", "This token is not known.", 401),
    "method": ("Not allowed", "This token may not read the console (console/read).", 403),
    "rate": ("Too many requests", "This caller is over its rate; try again soon.", 429),
}

Refuse = Callable[[Request, Trouble], Response]


def landing(next: str) -> str:
    """Where sign-in leads: the page of this console that was wanted, else the first."""
    return next if _NEXT.fullmatch(next) else "/search"


class Gate:
    """ASGI middleware: refuses foreign origins, and with `callers` whoever has no token that may do this."""

    def __init__(
        self, app: ASGIApp, callers: Callers | None, sessions: Sessions, host: str, refuse: Refuse
    ) -> None:
        self._app, self._callers, self._sessions, self._refuse = app, callers, sessions, refuse
        # Without tokens a loopback console trusts the machine's own users; a foreign name made to lead here (DNS
        # rebinding) would let any web page in.
        self._hosts = {"localhost", "127.0.0.1", "::1", host} if callers is None and _is_loopback(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["caller"] = ""
        answer = self._stop(Request(scope))
        await (answer or self._app)(scope, receive, send)

    def _stop(self, request: Request) -> Response | None:
        """The answer of a request that goes no further."""
        headers, path = request.headers, request.url.path
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if self._hosts is not None and host not in self._hosts:
            text = f"This console answers as {', '.join(sorted(self._hosts))} alone; VITRINE_CALLERS opens it."
            return self._refuse(request, Trouble("Not under this name", text, 421))
        if request.method not in ("GET", "HEAD") and not same_origin(headers):
            return self._refuse(request, Trouble("Refused", "The request came from another site.", 403))
        if not _in_bounds(headers.get("content-length", "0")):
            text = f"The photo has more than {MAX_BYTES >> 20} MiB; send a smaller copy."
            return self._refuse(request, Trouble("Too large", text, 413))
        if self._callers is None or path.startswith(_FREE):
            return None
        return self._admit(request, self._callers)

    def _admit(self, request: Request, callers: Callers) -> Response | None:
        bearer = request.headers.get("authorization")
        cookie = read_cookie(request)
        session = self._sessions.get(cookie) if cookie and not bearer else None
        path = request.url.path
        if session is not None and path.startswith(_PARTS_OF_A_PAGE) and self._sessions.lately(session):
            return None
        method = EVENTS if path.endswith("/events") else READ
        try:
            if bearer is None and session is None:
                return _to_sign_in(request)
            caller = callers.admit(bearer or (session and session.authorization), method)
        except Refused as refusal:
            return self._refused(request, refusal, session, cookie)
        request.scope["caller"] = caller.name
        request.scope["signed_in"] = session is not None
        if session is not None:
            self._sessions.admitted(session)
        return None

    def _refused(self, request: Request, refusal: Refused, session: Session | None, cookie: str) -> Response:
        if refusal.reason == "rate":
            wait_s = math.ceil(refusal.retry_after_s)
            text = f"This caller is over its rate; try again in {wait_s} s."
            answer = self._refuse(request, Trouble("Too many requests", text, 429))
            answer.headers["Retry-After"] = str(wait_s)
            return answer
        if refusal.reason == "method":
            text = "This sign-in may look, but not fire events." if session else "This caller may not do this."
            request.scope["caller"] = session.caller if session else ""
            request.scope["signed_in"] = session is not None
            return self._refuse(request, Trouble("Not allowed", text, 403))
        if session is not None:  # its token is not in the file any more
            self._sessions.end(cookie)
            return _to_sign_in(request)
        answer = self._refuse(request, Trouble("Not signed in", str(refusal).capitalize() + ".", 401))
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


class SignIn:
    """What the sign-in page does. Attempts are limited together, so that guessing is slow."""

    def __init__(self, callers: Callers | None, sessions: Sessions) -> None:
        self._callers, self._sessions = callers, sessions
        self._attempts = Bucket(5, 20)

    def sign_in(self, request: Request, token: str, next: str) -> Response:
        """To the page that was wanted, with the cookie. Raises Trouble."""
        if self._callers is None:
            return RedirectResponse("/search", 303)
        if self._attempts.take():
            raise Trouble("Too many attempts", "Wait a few seconds.", 429)
        authorization = f"Bearer {token.strip()}"
        try:
            caller = self._callers.admit(authorization, READ)
        except Refused as refusal:
            audit.record("console.sign-in", "console", caller="", outcome="failed", reason=str(refusal))
            raise Trouble(*_TOLD[refusal.reason]) from refusal
        audit.record("console.sign-in", "console", caller=caller.name)
        answer = RedirectResponse(landing(next), 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            _cookie_name(request),
            self._sessions.begin(caller.name, authorization),
            httponly=True,
            samesite="strict",
            secure=secure,
            path="/",
        )
        return answer

    def sign_out(self, request: Request) -> Response:
        """Ends the session, here and in the browser."""
        self._sessions.end(read_cookie(request))
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(_cookie_name(request), path="/", secure=request.url.scheme == "https", httponly=True)
        return answer


def _in_bounds(length: str) -> bool:
    return length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= MOST_BODY_BYTES


def same_origin(headers: Headers) -> bool:
    """Whether a browser says that the request comes from this console; what is no browser sends neither header."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == headers.get("host", "") != ""
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def read_cookie(request: Request) -> str:
    """The session's cookie, "" for none."""
    try:
        cookie = SimpleCookie(request.headers.get("cookie", "")[:8_192]).get(_cookie_name(request))
    except CookieError:
        return ""
    return cookie.value[:128] if cookie else ""


def _cookie_name(request: Request) -> str:
    """Under TLS a name that browsers let no other host set."""
    return "__Host-vitrine-console" if request.url.scheme == "https" else "vitrine-console"


def _to_sign_in(request: Request) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.headers.get("hx-request") == "true":
        return Response(status_code=401, headers={"HX-Redirect": "/sign-in", "Cache-Control": "no-store"})
    if request.url.path.startswith(_PARTS_OF_A_PAGE):
        return Response("sign in first", 401, media_type="text/plain")
    where = f"?next={quote(wanted, safe='')}" if request.method == "GET" and wanted != "/" else ""
    return RedirectResponse(f"/sign-in{where}", 303)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
