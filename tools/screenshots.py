"""Screenshots of the console's pages, of a whole system brought up for them: `make screenshots`."""

import argparse
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from vitrine.cli.bringup import Options, Running, bring_up
from vitrine.client import AnnClient, CtrClient, MatchingClient, Verdict
from vitrine.data.replay import user_events

HERE = Path(__file__).resolve().parents[1]
DESKTOP = {"viewport": {"width": 1180, "height": 980}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
DARK = {"color_scheme": "dark"}
OWN_COLOURS, MOST_BYTES = 64, 300_000


def main() -> None:
    """Writes search, user, why and system, one of them dark and one of a phone, into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder of real photos for Search (docs/data.md); drawn without it"
    )
    parser.add_argument("--out", type=Path, default=HERE / "docs" / "console", help="folder for the PNGs")
    parser.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["VITRINE_SCRAPE_S"] = "1"  # sparklines of half a minute, not of many
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"]) as browser,
    ):
        with system(None) as up:
            shop = Shots(browser, up, given.out)
            with traffic(up):
                time.sleep(30)
                shop.take("system", "/system", settle=told)
                shop.take("system-dark", "/system", settle=told, **DARK)
            user(shop)
            if given.data is None:
                search(shop)
        if given.data is not None:
            with system(given.data) as up:
                search(Shots(browser, up, given.out))


@contextmanager
def system(data: Path | None) -> Iterator[Running]:
    """A system with a console, in a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="vitrine-screenshots-") as work:
        options = Options("demo", Path(work) / "run", users=5_000, ads=2_000, seed=1, data=data, console=True)
        with bring_up(Console(), options) as up:
            yield up


@contextmanager
def traffic(up: Running) -> Iterator[None]:
    """Calls and events of a few users a second, so that the System page has something to show."""
    ended = threading.Event()
    addresses = {name: service.address for name, service in up.system.services.items()}
    recorded = list(user_events(up.market / "holdout.parquet"))

    def call() -> None:
        rng = np.random.default_rng(3)
        ann, ctr = AnnClient(addresses["ann"]), CtrClient(addresses["ctr"])
        with MatchingClient(addresses["matching"]) as matching, ann, ctr:
            dim = ann.stats().dim
            while not ended.wait(float(rng.exponential(0.02))):
                event = recorded[int(rng.integers(len(recorded)))]
                matches = matching.get_matches(event.user_id, k=50)
                ctr.score(matches.context, matches.ads)
                if rng.random() < 0.4:
                    ann.search(rng.normal(size=dim).astype(np.float32), k=10)
                if rng.random() < 0.5:
                    up.send(event)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Shots:
    """Takes pictures of one system's console."""

    def __init__(self, browser: Browser, up: Running, out: Path) -> None:
        self._browser, self._out = browser, out
        self.base = f"http://{up.system.services['console'].address}"
        self.matching = up.system.services["matching"].address

    def take(self, name: str, path: str, *, act=None, settle=None, full: bool = False, **options) -> None:
        """Opens `path`, does `act` with the page, waits for `settle`, and writes NAME.png."""
        context = self._browser.new_context(base_url=self.base, **(DESKTOP | options))
        page = context.new_page()
        page.goto(path)
        for step in filter(None, (act, settle)):
            step(page)
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(2_600)  # what has arrived is marked for two seconds
        save(page.screenshot(full_page=full), self._out / f"{name}.png")
        context.close()


def told(page: Page) -> None:
    """The dead letters have been looked for."""
    page.locator("#letters p, #letters td").first.wait_for()


def search(shop: Shots) -> None:
    """A photo with two of its true neighbours missed, where the first page of photos has such a one."""

    def measured(page: Page) -> None:
        page.locator(".chart svg").wait_for()

    def pick(page: Page) -> None:
        items = [a.get_attribute("href").partition("item=")[2] for a in page.locator(".photos.small a").all()]
        best = ""
        for item in items:
            page.goto(f"/search?item={item}&over_recall=2")
            missed, same = page.locator(".missed li").count(), page.locator("ol.photos .same").count()
            best = item if (missed == 2 and same > 6) or not best else best
        page.goto(f"/search?item={best}&over_recall=2")

    shop.take("search", "/search", act=pick, settle=measured, viewport={"width": 1180, "height": 1220})


def user(shop: Shots) -> None:
    """A user after a purchase, on a desk and on a phone, and an ad that just does not make that user's list."""

    def buy(page: Page) -> None:
        page.locator("button[value=purchase]").nth(8).click()
        page.locator(".event:not(.waiting)").wait_for()
        page.evaluate("document.activeElement.blur()")

    with MatchingClient(shop.matching) as matching:
        user_id = next(u for u in range(1, 500) if 12 <= matching.get_matches(u, k=1).revision <= 30)
        shop.take("user", f"/user/{user_id}", act=buy)
        shop.take("user-phone", f"/user/{user_id}", act=buy, **PHONE)
        explained = matching.explain(user_id, range(1_000_001, 1_001_001))
        below = [e for e in explained.ads if e.verdict is Verdict.BELOW_FLOOR and len(e.shared_crowds) > 1]
        # Far enough from the floor to be seen apart from it.
        nearly = min(below, key=lambda e: abs(e.value - 0.6 * explained.floor_value))
        shop.take("why", f"/why?user={user_id}&ad={nearly.ad}")


def save(png: bytes, file: Path) -> None:
    """Writes the picture; with 256 colours where it would be too large, the page's own as they are."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.save(file, optimize=True)
    if file.stat().st_size > MOST_BYTES:
        counted = sorted(image.getcolors(1 << 24) or [], reverse=True)
        own = [channel for _, colour in counted[:OWN_COLOURS] for channel in colour]
        rest = image.quantize(256 - OWN_COLOURS).getpalette() or []
        palette = Image.new("P", (1, 1))
        palette.putpalette((own + rest)[: 3 * 256])
        image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
