"""The console in a real browser over a live system: pages, events, slider, upload, keyboard, phone, sign-in."""

import io
import re
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from console_kit import LOOKER, NASTY, TOKEN, System, photo_ids, whole_system, write_callers
from PIL import Image

from tests.security_kit import Authority
from vitrine.artifacts import ArtifactStore
from vitrine.client import MatchingClient
from vitrine.runtime import process
from vitrine.runtime.embedded import EmbeddedStack

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
if not CHROMIUM.exists():
    pytest.skip(f"needs a browser: {CHROMIUM} is not there (apt install chromium)", allow_module_level=True)

PAGES = ("/search", "/user/7", "/user", "/why", "/why?user=7&ad=3", "/system")


@pytest.fixture(scope="module")
def system(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Worker, matching, ann and ctr, and a console that is open to all."""
    with whole_system(stack, "console-e2e", tmp_path_factory.mktemp("console")) as running:
        running.console().wait_serving()
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page, and everything that the browser complained about or asked elsewhere."""

    def __init__(self, browser: playwright.Browser, origin: str, **options: object) -> None:
        self.origin = origin
        self.complaints: list[str] = []
        self.context = browser.new_context(base_url=origin, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", self._asked)

    def _asked(self, request: playwright.Request) -> None:
        asked, own = urlsplit(request.url), urlsplit(self.origin)
        if (asked.scheme, asked.netloc) != (own.scheme, own.netloc):
            self.complaints.append(f"asked {request.url}")


@pytest.fixture
def visit(browser: playwright.Browser, system: System, request: pytest.FixtureRequest) -> Iterator[Visit]:
    options = getattr(request, "param", {"viewport": {"width": 1280, "height": 900}})
    made = Visit(browser, f"http://{system.services['console'].address()}", **options)
    yield made
    made.context.close()
    assert made.complaints == []


def first_user(system: System) -> int:
    """A user whose list holds an ad for an item."""
    with MatchingClient(system.live.services[1].address()) as matching:
        for user_id in range(1, 61):
            ads = matching.get_matches(user_id, k=10)
            if ads.revision and any(ad <= 120 for ad in ads.ads.tolist()):
                return user_id
    raise AssertionError("nobody has such a list")


def test_every_page_shows_and_asks_nobody_else(visit: Visit) -> None:
    for path in PAGES:
        assert visit.page.goto(path).status == 200, path
        assert visit.page.locator("h1").inner_text()
        assert visit.page.get_by_role("alert").count() == 0, visit.page.get_by_role("alert").first.inner_text()
    visit.page.goto("/system")
    for name in ("worker", "matching", "ann", "ctr"):
        assert visit.page.locator(".processes tr", has_text=name).get_by_text("Serving").count() == 1
    visit.page.locator(".letters td", has_text="value").first.wait_for()
    assert visit.page.locator("svg.lineage.wide text.title", has_text="binary-index").count() == 1


def test_names_are_shown_as_they_stand_whatever_they_hold(visit: Visit) -> None:
    visit.page.goto("/why?user=7&ad=3")
    assert NASTY in visit.page.locator(".answer").inner_text()


def test_an_event_changes_the_list_and_the_focus_stays(visit: Visit, system: System) -> None:
    user_id = first_user(system)
    visit.page.goto(f"/user/{user_id}")
    before = visit.page.locator(".facts dd").nth(1).inner_text()
    button = visit.page.locator("button[value=purchase]").first
    name = button.get_attribute("id")
    button.focus()
    visit.page.keyboard.press("Enter")
    visit.page.locator(".event:not(.waiting)").wait_for()
    system.live.valid += 1
    said = visit.page.locator(".event").inner_text()
    assert "bought" in said
    assert "The list" in said
    assert visit.page.locator("#said").text_content().strip() == said
    assert int(visit.page.locator(".facts dd").nth(1).inner_text()) == int(before) + 1
    if visit.page.locator(f"#{name}").count():
        assert visit.page.evaluate("document.activeElement.id") == name


def test_a_list_that_comes_late_is_polled_for(visit: Visit, system: System) -> None:
    worker = system.live.services[0].process
    visit.page.goto(f"/user/{first_user(system)}")
    worker.send_signal(signal.SIGSTOP)
    try:
        visit.page.fill("#crowd", "crowd named 3")
        visit.page.get_by_role("button", name="Join").click()
        visit.page.locator(".event.waiting").wait_for()
        system.live.valid += 1
    finally:
        worker.send_signal(signal.SIGCONT)
    visit.page.locator(".event:not(.waiting)").wait_for()
    assert "joined crowd named 3" in visit.page.locator(".event").inner_text()
    assert visit.page.locator(".poll").count() == 0
    assert visit.page.locator(".weights .name", has_text="crowd named 3").count() == 1


def test_the_slider_shows_what_a_shallow_search_misses(visit: Visit) -> None:
    visit.page.goto("/search?over_recall=1")
    shallow = int(visit.page.locator(".big b").inner_text())
    assert visit.page.locator(".missed li").count() == 10 - shallow > 0
    visit.page.focus("#over_recall")
    visit.page.keyboard.press("End")
    visit.page.locator(".big b", has_text=re.compile("^10$")).wait_for()
    assert visit.page.locator("#depth").inner_text() == "20"
    assert visit.page.locator(".missed li").count() == 0
    assert "over_recall=20" in visit.page.url
    visit.page.locator(".chart svg").wait_for()
    assert visit.page.locator(".chart .figure").inner_text().startswith("100")


def test_an_uploaded_photo_finds_its_own_item_first(visit: Visit, system: System) -> None:
    item = int(photo_ids()[0])
    image = httpx.get(f"{visit.origin}/photos/{item}").content
    visit.page.goto("/search")
    visit.page.set_input_files("#photo", {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": image})
    visit.page.wait_for_url(re.compile("upload="))
    assert f"item {item}" in visit.page.locator("ol.photos li").first.inner_text()
    assert visit.page.locator(".query img").evaluate("image => image.naturalWidth") > 0


def test_why_explains_a_listed_an_unlisted_and_an_unknown_ad(visit: Visit, system: System) -> None:
    user_id = first_user(system)
    with MatchingClient(system.live.services[1].address()) as matching:
        listed = int(matching.get_matches(user_id, k=1).ads[0])
        verdicts = {e.verdict.value: e.ad for e in matching.explain(user_id, range(3, 450, 3)).ads}
    visit.page.goto(f"/why?user={user_id}&ad={listed}")
    assert visit.page.locator(".answer h2").inner_text() == "Listed at rank 1"
    assert visit.page.locator(".steps .yes").count() == 6
    visit.page.goto(f"/why?user={user_id}&ad={verdicts['below the floor']}")
    assert visit.page.locator(".answer h2").inner_text() == "Below the floor of the list"
    assert "At this click rate that takes a bid of" in visit.page.locator(".answer").inner_text()
    visit.page.goto(f"/why?user={user_id}&ad={verdicts['no shared crowd']}")
    assert visit.page.locator(".steps .no").inner_text().startswith("Shares a crowd")
    visit.page.fill("#ad", "999999")
    visit.page.get_by_role("button", name="Explain").click()
    visit.page.get_by_text("The catalog does not hold this ad").wait_for()
    visit.page.fill("#ad", "item 14")
    visit.page.get_by_role("button", name="Explain").click()
    assert visit.page.locator(".chips a").count() > 0


def test_the_console_is_used_without_a_mouse(visit: Visit, system: System) -> None:
    visit.page.goto("/search")
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "main"
    assert reach(visit.page, "photo"), "the file chooser"
    assert reach(visit.page, "over_recall")
    visit.page.goto("/user")
    assert visit.page.evaluate("document.activeElement.id") == "id"
    visit.page.keyboard.type(str(first_user(system)))
    visit.page.keyboard.press("Enter")
    visit.page.locator("table.ads").wait_for()
    visit.page.locator(".ads a").first.focus()
    assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url(re.compile("/why"))


def reach(page: playwright.Page, id: str, most: int = 60) -> bool:
    """Whether Tab comes to the element."""
    for _ in range(most):
        if page.evaluate("document.activeElement.id") == id:
            return True
        page.keyboard.press("Tab")
    return False


PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("visit", [PHONE], indirect=True, ids=["phone"])
def test_nothing_is_wider_than_a_phone(visit: Visit, system: System) -> None:
    for path in (*PAGES, "/search?over_recall=1", f"/user/{first_user(system)}"):
        visit.page.goto(path)
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, f"{path} is {wide} wide"
        small = visit.page.evaluate(SMALLEST_TARGET)
        assert small is None, f"{path}: {small}"


# Controls must be 24 px high at least (WCAG 2.2, 2.5.8); links inside a line of text are excepted.
SMALLEST_TARGET = """() => {
  for (const e of document.querySelectorAll("button, input:not([type=hidden], .over), nav a, .chips a")) {
    const box = e.getBoundingClientRect();
    if (box.height && box.height < 24) return `${e.outerHTML.slice(0, 80)} is ${box.height} px high`;
  }
  return null;
}"""

# Every text's contrast with what lies behind it, by WCAG's formula; large or bold text may have 3, other 4.5.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    if (!walker.currentNode.textContent.trim() || !box.width || style.visibility === "hidden") continue;
    if (element.closest(".visually-hidden, .skip, noscript, datalist, option")) continue;
    const ink = parse(element.closest("svg") ? style.fill : style.color);
    let behind = element, back = null;
    while (behind && !back) {
      const rect = behind.tagName === "g" && behind.querySelector("rect");
      const colour = parse(rect ? getComputedStyle(rect).fill : getComputedStyle(behind).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) back = colour;
      behind = behind.parentElement;
    }
    const [a, b] = [light(ink), light(back || [255, 255, 255])].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const enough = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if (ratio < enough) found.push(`${walker.currentNode.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize(
    "visit", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True, ids=["dark", "light"]
)
def test_text_stands_out_from_what_lies_behind_it(visit: Visit, system: System) -> None:
    colours = set()
    for path in (*PAGES, "/search?over_recall=1", f"/user/{first_user(system)}"):
        visit.page.goto(path)
        assert visit.page.evaluate(CONTRAST) == [], path
        colours.add(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 1


@pytest.fixture(scope="module")
def guarded(system: System) -> tuple[str, Authority]:
    """(origin of a console with callers and TLS, its authority)."""
    authority = Authority(system.folder / "certificates")
    pair = authority.server()
    service = system.console(
        "console-guarded",
        callers=str(write_callers(system.folder / "callers.toml")),
        tls_cert=str(pair.cert),
        tls_key=str(pair.key),
    )
    service.wait_serving()
    return f"https://{service.address()}", authority


def test_sign_in_takes_a_good_token_and_no_other(
    browser: playwright.Browser, guarded: tuple[str, Authority]
) -> None:
    visit = Visit(browser, guarded[0], ignore_https_errors=True)
    visit.page.goto("/why?user=7&ad=3")
    assert visit.page.url.startswith(f"{guarded[0]}/sign-in?next=")
    visit.page.fill("#token", "wrong")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_text("This token is not known.").wait_for()
    visit.page.fill("#token", TOKEN)
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/why?user=7&ad=3")
    (cookie,) = visit.context.cookies()
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
    assert cookie["name"].startswith("__Host-")
    visit.page.get_by_role("button", name="Sign out").click()
    visit.page.wait_for_url("**/sign-in")
    visit.page.goto("/system")
    assert "/sign-in" in visit.page.url
    visit.context.close()
    assert all("401" in complaint for complaint in visit.complaints)


def test_who_may_look_may_not_fire(guarded: tuple[str, Authority], system: System) -> None:
    origin, authority = guarded
    trust = ssl.create_default_context(cafile=str(authority.cert))
    with httpx.Client(base_url=origin, verify=trust) as client:
        looking, doing = {"Authorization": f"Bearer {LOOKER}"}, {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/user/7").headers["location"].startswith("/sign-in")
        assert client.get("/user/7", headers=looking).status_code == 200
        event = {"kind": "view", "item": "7"}
        assert client.post("/user/7/events", data=event, headers=looking).status_code == 403
        assert client.post("/user/7/events", data=event, headers={"Authorization": "Bearer x"}).status_code == 401
        assert client.post("/user/7/events", data=event, headers=doing).status_code == 303
        system.live.valid += 1
    log = system.services["console-guarded"].said()
    assert '"action": "console.event", "target": "user 7", "caller": "operator"' in log
    assert TOKEN not in log


def test_every_page_says_what_is_away(browser: playwright.Browser, system: System) -> None:
    nobody = "127.0.0.1:1"
    lonely = {f"{name}_address": nobody for name in ("ann", "matching", "ctr")}
    service = system.console(
        "console-lonely",
        **lonely,
        kafka_url=f"kafka://{nobody}",
        metrics_pages=f"worker=http://{nobody}/metrics",
        store=str(system.folder / "nothing"),
        timeout_s="0.5",
    ).wait_serving()
    visit = Visit(browser, f"http://{service.address()}")
    for path, said in (
        ("/search?item=7", "The ann service does not answer"),
        ("/user/7", "The matching server does not answer"),
        ("/why?user=7&ad=3", "The matching server does not answer"),
        ("/system", "Its metrics page does not answer"),
    ):
        begun = time.monotonic()
        visit.page.goto(path)
        visit.page.get_by_text(said).first.wait_for()
        assert time.monotonic() - begun < 8, path
    visit.page.get_by_text("They cannot be read").wait_for()
    visit.context.close()
    assert process.stop(service.process) == 0, service.said()


def test_photos_are_cached_by_their_content(system: System) -> None:
    origin = f"http://{system.services['console'].address()}"
    version = ArtifactStore(system.folder / "store", namespace="console-e2e").resolve("embeddings")
    first = httpx.get(f"{origin}/photos/7?v={version}")
    assert "immutable" in first.headers["cache-control"]
    assert Image.open(io.BytesIO(first.content)).size == (64, 64)
    again = httpx.get(f"{origin}/photos/7", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
