"""What the operator's commands share: where Redis and the artifacts are."""

from typing import Annotated

import typer

from vitrine.errors import FieldError
from vitrine.matching.store import Store
from vitrine.runtime import redis

RedisUrl = Annotated[
    str, typer.Option("--redis-url", envvar="VITRINE_REDIS_URL", help="redis://[user:password@]host:port")
]
StoreOption = Annotated[str, typer.Option("--store", envvar="VITRINE_STORE", help="folder or fsspec URL")]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", envvar="VITRINE_NAMESPACE", help="prefix of topics, keys and artifacts")
]


def store_of(redis_url: str, namespace: str) -> Store:
    """The states and lists of a namespace. Raises FieldError where no Redis is named."""
    if not redis_url:
        raise FieldError("--redis-url", "say which Redis, here or in VITRINE_REDIS_URL")
    return Store(redis.connect(redis_url), namespace)
