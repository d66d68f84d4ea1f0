"""Who may use the console: tokens, sessions and their end, rates, foreign origins and names, redirects."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from console_kit import LOOKER, TOKEN, TestClient, write_callers
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from services.console.app import Console
from services.console.backend import Backend
from services.console.gate import landing, same_origin
from services.console.sessions import Sessions
from services.console.settings import ConsoleSettings
from vitrine.runtime.callers import Callers

BASE = "http://127.0.0.1"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def backend():
    made = Backend(ConsoleSettings())
    yield made
    made.close()


@pytest.fixture
def callers(tmp_path: Path):
    made = Callers(write_callers(tmp_path / "callers.toml"), every_s=0.05)
    yield made
    made.close()


def client_of(backend: Backend, callers: Callers | None = None, base: str = BASE) -> TestClient:
    return TestClient(Console(backend, callers).application, base_url=base, follow_redirects=False)


@pytest.fixture
def guarded(backend, callers) -> TestClient:
    return client_of(backend, callers)


def sign_in(client: TestClient, token: str = TOKEN, next: str = ""):
    return client.post("/sign-in", data={"token": token, "next": next}, headers={"Origin": str(client.base_url)})


@pytest.mark.parametrize("path", ["/", "/search", "/user/7", "/why", "/system", "/search/results", "/nowhere"])
def test_without_a_token_there_is_nothing_but_the_sign_in(guarded, path):
    assert guarded.get(path).headers["location"].startswith("/sign-in")
    by_htmx = guarded.get(path, headers={"HX-Request": "true"})
    assert (by_htmx.status_code, by_htmx.headers["HX-Redirect"], by_htmx.text) == (401, "/sign-in", "")
    assert guarded.get("/photos/7").status_code == 401
    assert guarded.get("/static/console.css").status_code == 200


def test_a_bearer_token_needs_no_session(guarded):
    assert guarded.get("/system", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    wrong = guarded.get("/system", headers={"Authorization": "Bearer nobody's"})
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")


def test_a_good_token_begins_a_session_and_signing_out_ends_it(guarded):
    assert sign_in(guarded, "wrong").status_code == 401
    assert not guarded.cookies
    answer = sign_in(guarded)
    assert (answer.status_code, answer.headers["location"]) == (303, "/search")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]
    assert TOKEN not in answer.headers["set-cookie"]
    page = guarded.get("/system")
    assert page.status_code == 200
    assert "operator" in page.text
    stolen = dict(guarded.cookies)
    guarded.post("/sign-out", headers={"Origin": BASE})
    guarded.cookies.update(stolen)
    assert guarded.get("/system").status_code == 303


def test_a_session_lasts_its_time_and_no_longer():
    clock = Clock()
    sessions = Sessions(60, clock)
    cookie = sessions.begin("operator", "Bearer x")
    clock.now += 59.9
    assert sessions.get(cookie).caller == "operator"
    assert sessions.get(cookie + "x") is None
    clock.now += 0.2
    assert sessions.get(cookie) is None


def test_sessions_are_bounded_and_the_oldest_goes():
    sessions = Sessions(60)
    first = sessions.begin("first", "Bearer x")
    for _ in range(10_000):
        last = sessions.begin("other", "Bearer x")
    assert sessions.get(first) is None
    assert sessions.get(last) is not None


def test_a_token_taken_out_of_the_file_ends_its_sessions(backend, tmp_path):
    file = write_callers(tmp_path / "callers.toml")
    callers = Callers(file, every_s=0.01)
    client = client_of(backend, callers)
    sign_in(client)
    assert client.get("/system").status_code == 200
    file.write_text(
        file.read_text().split("[[callers]]\n", 2)[0] + "[[callers]]\n" + file.read_text().split("[[callers]]\n")[2]
    )
    callers._file.look()
    assert client.get("/system").headers["location"].startswith("/sign-in")
    callers.close()


def test_who_may_look_is_told_that_events_are_not_for_them(guarded):
    sign_in(guarded, LOOKER)
    answer = guarded.post("/user/7/events", data={"kind": "view", "item": "7"}, headers={"Origin": BASE})
    assert answer.status_code == 403
    assert "may look, but not fire events" in answer.text


def test_a_caller_over_its_rate_is_told_when_to_come_back(backend, tmp_path):
    file = write_callers(tmp_path / "callers.toml")
    file.write_text(file.read_text().replace('name = "guest"', 'name = "guest"\nrate_per_s = 0.1\nburst = 2'))
    callers = Callers(file)
    client = client_of(backend, callers)
    headers = {"Authorization": f"Bearer {LOOKER}"}
    assert [client.get("/system", headers=headers).status_code for _ in range(3)] == [200, 200, 429]
    assert 1 <= int(client.get("/system", headers=headers).headers["retry-after"]) <= 10
    callers.close()


def test_guessing_is_slowed_down(guarded):
    assert [sign_in(guarded, f"guess {i}").status_code for i in range(25)][-1] == 429


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"origin": BASE}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": f"{BASE}.evil.example"}, False),
        ({"origin": f"{BASE}:81"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
        ({}, True),
    ],
)
def test_a_form_of_another_site_is_refused(backend, headers, allowed):
    answer = client_of(backend).post("/user/7/events", data={"kind": "view", "item": "7"}, headers=headers)
    assert (answer.status_code != 403) == allowed
    assert same_origin(Headers({"host": "127.0.0.1", **headers})) == allowed


def test_a_foreign_name_that_leads_to_loopback_is_not_answered_without_tokens(backend, callers):
    assert client_of(backend, base="http://rebound.example").get("/system").status_code == 421
    assert client_of(backend, base="http://localhost:7004").get("/system").status_code == 200
    assert client_of(backend, callers, base="http://rebound.example").get("/system").status_code == 303


@given(
    next=st.text(max_size=60)
    | st.from_regex(r"/(search|user|why|system)[/?].{0,40}", fullmatch=True)
    | st.sampled_from(["//evil.example", "/\\evil.example", "https://evil.example", "/search//x"])
)
def test_sign_in_leads_to_the_consoles_own_pages_alone(next):
    wanted = landing(next)
    assert wanted.startswith(("/search", "/user", "/why", "/system"))
    assert urlsplit(wanted).netloc == ""
    assert "\\" not in wanted
    assert not any(c.isspace() for c in wanted)


def test_the_page_that_was_wanted_is_shown_after_sign_in(guarded):
    assert sign_in(guarded, next="/why?user=7&ad=3").headers["location"] == "/why?user=7&ad=3"
    assert sign_in(guarded, next="//evil.example").headers["location"] == "/search"


def test_every_sign_in_leaves_a_line_without_the_token(guarded, capsys):
    sign_in(guarded)
    sign_in(guarded, "wrong-token")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"audit": true' in line]
    assert [(line["action"], line["outcome"], line["caller"]) for line in lines] == [
        ("console.sign-in", "ok", "operator"),
        ("console.sign-in", "failed", ""),
    ]
    assert not any("wrong-token" in json.dumps(line) or TOKEN in json.dumps(line) for line in lines)
