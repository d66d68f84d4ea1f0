"""The console's pages without a system: what is away is said, names are escaped, inputs are refused in words."""

import copy
import dataclasses
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
from console_kit import TestClient, publish_photos, write_names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matching_kit import small_catalog
from PIL import Image

from services.console import why
from services.console.app import Console
from services.console.backend import Backend
from services.console.events import user_event
from services.console.guard import HEADERS
from services.console.settings import ConsoleSettings
from services.console.shown import Names, Photos
from services.console.uploads import MAX_BYTES
from vitrine.artifacts import ArtifactStore
from vitrine.client import (
    Explanation,
    Explanations,
    InvalidArgumentError,
    Matches,
    NotFoundError,
    Source,
    UserContext,
    Verdict,
)
from vitrine.errors import UnavailableError
from vitrine.features import user_features
from vitrine.matching import catalog

IDS = np.array([3, 6, 9], np.uint64)


class FakeMatching:
    """A matching server with one user, 7, whose list has three ads; each event of the fake sender moves it."""

    revision = 4
    known = frozenset({7})

    def get_matches(self, user_id: int, k: int = 50, *, timeout_s: float | None = None) -> Matches:
        if k > 10:
            raise InvalidArgumentError("k: 50 is not in 1..10", {"k": "50 is not in 1..10"})
        stored = user_id in self.known
        keys, weights = user_features(
            np.array([7, 14], np.uint64), np.array([1.0, 0.5]), np.array([10, 20], np.uint64), np.array([2.0, 1.0])
        )
        order = IDS if self.revision % 2 == 0 else IDS[::-1]
        return Matches(
            order[:k], np.array([0.5, 0.25, 0.125], np.float32)[:k], np.ones(3, np.float32)[:k],
            np.full(3, 10, np.uint64)[:k], 1_500 if stored else 0, self.revision if stored else 0,
            Source.STORED if stored else Source.NO_LIST, "20261124T073400123456-aaaa1111",
            "20261124T073400123456-bbbb2222", UserContext(keys, weights),
        )  # fmt: skip

    def explain(self, user_id: int, ads: list[int]) -> Explanations:
        if user_id not in self.known:
            raise NotFoundError(grpc.StatusCode.NOT_FOUND, "no state")
        found = []
        for ad in ads:
            rank = int(np.flatnonzero(ad == IDS)[0]) + 1 if ad in IDS else 0
            verdict = Verdict.LISTED if rank else Verdict.UNKNOWN_AD if ad > 450 else Verdict.BELOW_FLOOR
            shared = np.array([] if ad > 450 else [10], np.uint64)
            bids = np.ones(len(shared), np.float32)
            found.append(Explanation(ad, verdict, rank, shared, bids, 10, 1.0, 0.05, 0.05))
        return Explanations(found, np.array([10, 20], np.uint64), 0.1, "20261124T073400123456-aaaa1111", "b")

    def close(self) -> None:
        pass


class FakeSender:
    """Keeps events, and has the fake list follow."""

    def __init__(self, matching: FakeMatching) -> None:
        self.sent: list[bytes] = []
        self.broken = False
        self._matching = matching

    def send(self, event) -> None:
        if self.broken:
            raise UnavailableError("Kafka does not answer at kafka://nobody:1")
        self.sent.append(event.SerializeToString())
        self._matching.revision += 1

    def close(self) -> None:
        pass


def named(folder: Path) -> Names:
    """The small catalog with titles."""
    small_catalog().write(folder)
    write_names(folder)
    return Names.load(_Artifact(folder))


@dataclasses.dataclass
class _Manifest:
    version: str = "20261124T073400123456-aaaa1111"
    files: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Artifact:
    path: Path
    manifest: _Manifest = dataclasses.field(default_factory=_Manifest)


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> Iterator[Backend]:
    made = Backend(ConsoleSettings())
    made.matching = FakeMatching()
    made.sender = FakeSender(made.matching)
    made.names.current = named(tmp_path_factory.mktemp("names"))
    yield made
    made.close()


@pytest.fixture
def client(backend) -> TestClient:
    backend.matching.revision, backend.sender.broken = 4, False
    return TestClient(
        Console(backend).application,
        base_url="http://127.0.0.1",
        follow_redirects=False,
        raise_server_exceptions=False,
    )


@pytest.fixture
def nothing() -> Iterator[TestClient]:
    """A console that was told nothing at all."""
    made = Backend(ConsoleSettings())
    yield TestClient(Console(made).application, base_url="http://127.0.0.1", follow_redirects=False)
    made.close()


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/search", 503, "VITRINE_ANN_ADDRESS"),
        ("/user", 200, "User id"),
        ("/user/7", 503, "VITRINE_MATCHING_ADDRESS"),
        ("/why?user=7&ad=3", 503, "VITRINE_MATCHING_ADDRESS"),
        ("/system", 200, "VITRINE_METRICS_PAGES"),
        ("/system/artifacts", 200, "VITRINE_STORE"),
        ("/system/letters", 200, "VITRINE_KAFKA_URL"),
    ],
)
def test_a_console_that_was_told_nothing_says_what_it_wants(nothing, path, status, said):
    answer = nothing.get(path)
    assert answer.status_code == status
    assert said in answer.text


@pytest.mark.parametrize("path", ["/search", "/nowhere", "/photos/1", "/static/console.css", "/user/x", "/broken"])
def test_every_answer_tells_the_browser_what_to_refuse(backend, path, monkeypatch):
    monkeypatch.setattr(Console, "home", lambda self, request: 1 / 0)
    client = TestClient(Console(backend).application, base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = client.get("/" if path == "/broken" else path)
    if path == "/broken":
        assert answer.status_code == 500
        assert "ZeroDivision" not in answer.text
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


class Structure(HTMLParser):
    """Tags and names of attributes of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_data(self, data):
        self.text.append(data)


MARKUP = st.sampled_from(
    ["<script>", "</td>", "<b>", "&lt;", "&#60;", '"', "'", "{{ 7 * 7 }}", "{% x %}", "--><", "\n"]
)
TITLES = st.lists(MARKUP | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), min_size=1).map(
    "".join
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(TITLES)
def test_no_name_changes_what_a_page_is_made_of(backend, client, title):
    seen = {}
    held = backend.names.current
    for given_title in ("plain", f"plain {title}"):
        titles, crowds = copy.copy(held._titles), copy.copy(held._crowds)
        titles.texts, crowds.texts = pa.array([given_title] * 150), pa.array([given_title] * 12)
        backend.names.current = dataclasses.replace(held, _titles=titles, _crowds=crowds)
        for path in ("/user/7", "/why?user=7&ad=3", "/why?user=7&ad=plain"):
            page = Structure(client.get(path).text)
            seen.setdefault(path, []).append(page.tags)
            if given_title != "plain":
                assert " ".join(given_title.split()) in " ".join(" ".join(page.text).split())
    backend.names.current = held
    for path, (plain, other) in seen.items():
        assert other == plain, path


def test_an_event_moves_the_list_and_says_how(client, backend):
    before = len(backend.sender.sent)
    answer = client.post("/user/7/events", data={"kind": "purchase", "item": "7"}, headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert len(backend.sender.sent) == before + 1
    assert "User 7 bought" in answer.text
    assert "1 risen" in answer.text
    assert "<html" not in answer.text
    without_scripts = client.post("/user/7/events", data={"kind": "click", "ad": "3"})
    assert without_scripts.status_code == 303
    assert re.fullmatch(r"/user/7\?fired=[\w-]{16}", without_scripts.headers["location"])
    assert "clicked" in client.get(without_scripts.headers["location"]).text


@pytest.mark.parametrize(
    ("path", "form", "said"),
    [
        ("/user/7/events", {"kind": "sell", "item": "7"}, "kind: "),
        ("/user/7/events", {"kind": "view", "item": "0"}, "item: "),
        ("/user/7/events", {"kind": "view", "item": str(2**64)}, "item: "),
        ("/user/7/events", {"kind": "view"}, "item: nothing"),
        ("/user/x/events", {"kind": "view", "item": "7"}, "user: "),
        ("/user/7/events", {"kind": "join", "crowd": "no such crowd"}, "crowd: the catalog has none named"),
    ],
)
def test_an_event_that_cannot_be_is_refused_and_nothing_sent(client, backend, path, form, said):
    before = len(backend.sender.sent)
    answer = client.post(path, data=form, headers={"HX-Request": "true"})
    assert answer.status_code == 400
    assert said in answer.text
    assert len(backend.sender.sent) == before


def test_an_event_that_kafka_does_not_take_says_so_and_leaves_the_page(client, backend):
    backend.sender.broken = True
    answer = client.post("/user/7/events", data={"kind": "view", "item": "7"}, headers={"HX-Request": "true"})
    assert answer.status_code == 503
    assert "The event was not sent" in answer.text
    assert answer.headers["HX-Retarget"] == "#trouble"


def test_a_crowd_is_joined_by_its_name(client, backend):
    client.post("/user/7/events", data={"kind": "join", "crowd": "CROWD named 3"})
    assert b"\x22\x04\x08\x28\x10\x01" in backend.sender.sent[-1], "CrowdChange(crowd_id=40, JOIN)"


@pytest.mark.parametrize(
    ("verdict", "rank", "failed"),
    [
        (Verdict.LISTED, 1, []),
        (Verdict.LISTED, 3, ["Served"]),
        (Verdict.BELOW_FLOOR, 0, ["Above the floor"]),
        (Verdict.OWED, 0, ["Above the floor"]),
        (Verdict.ADVERTISER_CAP, 0, ["Above the floor"]),
        (Verdict.PAUSED, 1, ["Running", "Served"]),
        (Verdict.OUT_OF_SCHEDULE, 0, ["Above the floor", "Running"]),
        (Verdict.OUT_OF_BUDGET, 0, ["Above the floor", "Running"]),
        (Verdict.NEGATIVE_CROWD, 0, ["Not excluded"]),
        (Verdict.BLOCKED, 0, ["Not excluded"]),
        (Verdict.FREQUENCY_CAP, 0, ["Not excluded"]),
        (Verdict.OTHER_PLACEMENT, 0, ["Not excluded"]),
        (Verdict.UNKNOWN_AD, 0, ["In the catalog"]),
    ],
)
def test_every_verdict_is_told_with_the_step_that_decides(verdict, rank, failed):
    shared = np.array([] if verdict is Verdict.UNKNOWN_AD else [10], np.uint64)
    one = Explanation(3, verdict, rank, shared, np.ones(len(shared), np.float32), 10, 1.0, 0.05, 0.05)
    assert [step.title for step in why._steps(one, 0.1, 2) if step.passed is False] == failed
    assert "does not know the verdict" not in why._told(one, 0.1, 7, 2)[0]


@pytest.mark.parametrize("kind", ["purchase", "view", "click", "block", "join", "leave"])
def test_every_kind_of_event_is_one_that_the_worker_takes(kind):
    from vitrine.matching.events import parse_event

    sent = user_event(kind, 7, 14, 1_700_000_000_000)
    assert parse_event(b"7", sent.SerializeToString()) == sent


@pytest.mark.parametrize(
    "path",
    ["/user?id=x", "/user/-1", "/user/18446744073709551616", "/why?user=x&ad=3", "/why?user=7&ad=",
     "/search?item=x", "/search?over_recall=101", "/search?page=99999999999", "/search/results?over_recall=-1"],
)  # fmt: skip
def test_inputs_out_of_bounds_are_refused_in_words(client, path):
    answer = client.get(path)
    assert answer.status_code == 400
    assert "This cannot be used" in answer.text


def test_a_user_without_a_state_is_shown_the_fallback_and_explained_as_such(client):
    assert "fallback" in client.get("/user/8").text
    answer = client.get("/why?user=8&ad=3")
    assert answer.status_code == 404
    assert "User 8 is not known" in answer.text


def test_a_users_features_are_named_by_what_they_are_of(client):
    page = client.get("/user/7").text
    assert "crowd named 1" in page
    assert "ad of item 1" in page


def picture(size: tuple[int, int] = (40, 30), form: str = "PNG", mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, form)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 400, "no file was chosen"),
        (b"GIF89a" + b"\0" * 100, 400, "cannot be read"),
        (picture()[:60], 400, "cannot be read"),
        (picture((5000, 4000), mode="1"), 400, "5000 x 4000"),
        (b"\xff" * (MAX_BYTES + 1), 400, "8,388,608 at most"),
        (b"\xff" * (MAX_BYTES + (1 << 20)), 413, "more than 8 MiB"),
    ],
    ids=["empty", "gif", "cut", "many pixels", "many bytes", "very many bytes"],
)
def test_an_upload_that_cannot_be_searched_by_is_refused(client, data, status, said):
    answer = client.post("/search/upload", files={"photo": ("photo", data, "image/png")})
    assert answer.status_code == status
    assert said in answer.text


def test_an_upload_is_kept_small_upright_and_under_a_name_nobody_guesses(client, backend):
    image = Image.new("RGBA", (900, 300), (255, 0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # turn a quarter
    data = io.BytesIO()
    image.save(data, "PNG", exif=exif)
    answer = client.post("/search/upload", files={"photo": ("photo", data.getvalue(), "image/png")})
    token = answer.headers["location"].partition("upload=")[2]
    assert len(token) >= 20
    kept = client.get(f"/uploads/{token}")
    shown = Image.open(io.BytesIO(kept.content))
    assert (shown.format, shown.size, shown.getpixel((1, 1))) == ("JPEG", (107, 320), (255, 255, 255))
    assert client.get(f"/uploads/{token[:-1]}").status_code == 404


def test_photos_know_their_items_and_come_in_pages_without_repeats(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    publish_photos(store, tmp_path)
    photos = Photos.load(store.fetch("embeddings", max_schema=1))
    first, second = photos.some(20, 0), photos.some(20, 1)
    assert len({*first, *second}) == 40
    assert all(photos.row(item) in set(photos.held_out.tolist()) for item in first)
    assert photos.some(20, 3) == photos.some(20, 0), "60 held-out photos are three pages"
    assert photos.category(7) == photos.categories[0]
    assert photos.image(8) is photos.vector(8) is None


def test_a_catalog_without_names_shows_numbers(tmp_path):
    small_catalog().write(tmp_path)
    names = Names.load(_Artifact(tmp_path))
    assert (names.ad(3), names.crowd(10), names.item(10**15)) == ("ad 3", "crowd 10", f"item {10**15}")
    assert catalog.TITLES_FILE not in {file.name for file in tmp_path.iterdir()}
