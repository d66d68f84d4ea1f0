"""Two shards and the router as processes: together they answer as one index does."""

import hashlib
import io
import time

import grpc
import numpy as np
import pytest
from ann_kit import FIRST_ID, unit_vectors
from ann_shards import DIM, SHARDS, running, sharded, wait_serving
from PIL import Image

from tests.security_kit import Authority
from tests.waiting import wait_for
from vitrine import filters
from vitrine.ann.filters import OneOf
from vitrine.ann.index import Options
from vitrine.artifacts import aliases
from vitrine.client import (
    AnnClient,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    Security,
    VitrineError,
)
from vitrine.placement import shards_of
from vitrine.runtime import topics

TOKEN = "router-test"  # noqa: S105
ASKED = unit_vectors(7, 5, DIM)


@pytest.fixture(scope="module")
def system(stack, tmp_path_factory):
    """Shards that take updates, and a router; tests leave the items as they found them."""
    namespace = "router-e2e"
    topics.create(stack.kafka_url, namespace, 4)
    with running(tmp_path_factory.mktemp("router"), namespace=namespace, kafka_url=stack.kafka_url) as started:
        yield started


@pytest.fixture
def client(system):
    return system[1]


@pytest.fixture
def whole(system):
    """The same items as one index of the library."""
    (index,) = system[0].wholes.values()
    return index


def same(answer, hits):
    """Whether an answer of the service has what the library found."""
    ends = np.cumsum(hits.counts.astype(np.int64))[:-1]
    assert [part.tolist() for part in answer.ids] == [part.tolist() for part in np.split(hits.ids, ends)]
    assert np.array_equal(np.concatenate(answer.distances), hits.distances)
    if hits.scores is not None:
        assert np.abs(np.concatenate(answer.scores) - hits.scores).max() < 1e-6


def test_queries_of_every_kind_find_what_one_index_finds(system, client, whole):
    same(client.search(5 * ASKED, k=12, exact=True), whole.search_vectors(ASKED, Options(12, exact=True)))
    codes = np.ascontiguousarray(whole.hashing.encode(ASKED).T)
    same(client.search(codes=codes, k=12, exact=True), whole.search_codes(codes, Options(12, exact=True)))
    items = [FIRST_ID + 3 * i for i in (0, 1, 2, 50)]
    found = client.search(item_ids=items, k=12, exact=True)
    same(found, whole.search_items(np.array(items, np.uint64), Options(12, exact=True)))
    assert all(item not in ids for item, ids in zip(items, found.ids, strict=True))
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(out, "PNG")
    assert len(client.search(picture=out.getvalue(), k=3).ids[0]) == 3
    assert len(client.search(ASKED, k=1000).ids[0]) == whole.items
    version = next(iter(system[0].wholes))
    assert [(each.shard, each.version, each.error) for each in found.shards] == [(0, version, ""), (1, version, "")]
    assert found.version == version


def test_filters_groups_and_pages_are_those_of_one_index(client, whole):
    odd = filters.one_of("kind", "odd")
    options = Options(9, exact=True, filter=OneOf("kind", frozenset(["odd"])), group_by="shop")
    got = client.search(ASKED, k=9, exact=True, filter=odd, group_by="shop")
    expected = whole.search_vectors(ASKED, options)
    same(got, expected)
    assert [value for group in got.groups for value in group] == expected.groups

    seen, cursors = [], ()
    for _ in range(10):
        page = client.search(ASKED[:1], k=60, exact=True, cursors=cursors)
        seen += page.ids[0].tolist()
        cursors = page.cursors
        if not any(cursors):
            break
    assert seen == whole.search_vectors(ASKED[:1], Options(whole.items, exact=True)).ids.tolist()
    with pytest.raises(InvalidArgumentError, match="cursors: is no cursor of this router"):
        client.search(ASKED[:1], k=60, cursors=[b"page two"])


def test_items_are_written_to_the_shard_that_owns_them_and_found_at_once(system, client):
    embeddings = client.stats().embeddings_version
    before = client.stats().items
    ids, vectors = list(range(1, 41)), unit_vectors(31, 40, DIM)
    written = client.upsert(
        ids, vectors, embeddings_version=embeddings, attributes=[{"shop": 100 + i % 2} for i in ids]
    )
    assert written.items == 40
    assert client.stats().items == before + 40
    owners = shards_of(np.array(ids, np.uint64), SHARDS)
    for shard in range(SHARDS):
        with AnnClient(system[0].services[f"ann-{shard}-0"].address(), timeout_s=10) as direct:
            assert direct.get(ids).ids.tolist() == [
                i for i, owner in zip(ids, owners, strict=True) if owner == shard
            ]
    got = client.get([*reversed(ids), 999_999])
    assert got.ids.tolist() == ids[::-1]
    assert np.abs(got.vectors - vectors[::-1]).max() < 1e-6
    assert got.attributes[0] == {"shop": 100 + 40 % 2}
    found = client.search(vectors, k=1, min_sequences=written.sequences)
    assert [int(each[0]) for each in found.ids] == ids

    shop = client.delete(filter=filters.one_of("shop", 100))
    assert shop.items == 20
    rest = client.delete([i for i in ids if i % 2])
    assert rest.items == 20
    sequences = {
        p: max(shop.sequences.get(p, 0), rest.sequences.get(p, 0)) for p in (*shop.sequences, *rest.sequences)
    }
    assert client.stats().items == before
    assert len(client.get(ids).ids) == 0
    assert not set(ids) & set(client.search(vectors, k=1, min_sequences=sequences).ids[0].tolist())


def test_what_is_wrong_is_refused_in_the_shards_words(client):
    with pytest.raises(InvalidArgumentError) as refused:
        client.search(ASKED[:, :-1], k=5)
    assert "vectors" in refused.value.fields
    with pytest.raises(InvalidArgumentError, match=r"^INVALID_ARGUMENT: k: "):
        client.search(ASKED, k=0)
    with pytest.raises(NotFoundError, match="shoes"):
        client.search(ASKED, index="shoes")
    with pytest.raises(NotFoundError, match="item_ids: 999999 is not in the index"):
        client.search(item_ids=[FIRST_ID, 999_999], k=5)
    with pytest.raises(InvalidArgumentError, match="item_ids: has a 0"):
        client.get([FIRST_ID, 0])
    with pytest.raises(VitrineError, match="embeddings_version") as refused:
        client.upsert([1], ASKED[:1], embeddings_version="another")
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(InvalidArgumentError, match="item_ids: has an id twice"):
        client.upsert([7, 7], ASKED[:2], embeddings_version=client.stats().embeddings_version)


def test_a_deadline_is_the_callers(client):
    begin = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.search(ASKED, k=5, min_sequences={0: 10**9}, timeout_s=0.3)
    assert time.monotonic() - begin < 5


def test_an_alias_is_the_shards_to_resolve(system, client):
    made = system[0]
    aliases.set_alias(made.store, "shop", "binary-index")
    wait_for(lambda: known(client, "shop"), 20)
    assert client.stats(index="shop").index == "binary-index"
    assert client.search(ASKED, k=3, index="shop").ids[0].tolist() == client.search(ASKED, k=3).ids[0].tolist()
    aliases.remove(made.store, "shop")
    wait_for(lambda: not known(client, "shop"), 20)


def known(client, index):
    try:
        return client.stats(index=index)
    except NotFoundError:
        return None


def test_the_metrics_page_tells_of_each_shard(system, client):
    client.search(ASKED, k=3)
    router = system[0].services["router"]
    assert router.metric("vitrine_ann_router_shard_seconds_count") >= SHARDS
    assert router.metric("vitrine_ann_router_ready_replicas") == SHARDS
    assert router.metric("vitrine_ann_router_in_flight") == 0


@pytest.mark.slow
def test_shards_behind_certificates_and_tokens_are_called_with_the_routers_own(tmp_path):
    """The router finds its shards by a name, and holds each server behind it to that name's certificate."""
    authority = Authority(tmp_path / "authority")
    pair, own = authority.server(), authority.client()
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "callers.toml").write_text(
        f'[[callers]]\nname = "router"\ntoken_sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n'
        'methods = ["vitrine.api.ann.v1.AnnService/*"]\n'
    )
    with sharded(tmp_path) as made:
        made.publish(0)
        secured = {"tls_cert": str(pair.cert), "tls_key": str(pair.key), "tls_client_ca": str(authority.cert)}
        for shard in range(SHARDS):
            made.replica(shard, 0, **secured, callers=str(tmp_path / "callers.toml"))
        router = made.router(
            shards=";".join(f"localhost:{ports[0]}" for ports in made.ports),
            client_ca=str(authority.cert),
            client_cert=str(own.cert),
            client_key=str(own.key),
            client_token_file=str(tmp_path / "token"),
            tls_cert=str(pair.cert),
            tls_key=str(pair.key),
        )
        wait_serving(made.services.values())
        security = Security(ca=str(authority.cert))
        with AnnClient(
            router.address().replace("127.0.0.1", "localhost"), timeout_s=10, security=security
        ) as client:
            assert len(client.search(ASKED, k=3).ids) == len(ASKED)
