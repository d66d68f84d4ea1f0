"""Settings of the console: where the services, their metrics pages, the store and Kafka are; all may be missing."""

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from vitrine.runtime.follow import RefSettings

_MOST_PAGES = 64


class ConsoleSettings(RefSettings):
    """What the console can be told. What is not given is said on the pages that would need it."""

    ann_address: str = Field("", description="gRPC address of the ann service, host:port.")
    matching_address: str = Field("", description="gRPC address of the matching server, host:port.")
    ctr_address: str = Field("", description="gRPC address of the ctr service, host:port.")
    metrics_pages: str = Field("", description="Metrics pages to watch: name=http://host:port/metrics, by commas.")
    scrape_s: float = Field(5, ge=0.2, le=300, description="Time between looks at the metrics pages.")
    timeout_s: float = Field(2, gt=0, le=60, description="Wait for a service, Kafka or a metrics page.")
    session_s: float = Field(8 * 3600, gt=0, description="Time after which a sign-in ends.")

    @field_validator("metrics_pages")
    @classmethod
    def _pages_are_urls(cls, value: str) -> str:
        parse_pages(value)
        return value


def parse_pages(text: str) -> dict[str, str]:
    """Name -> URL of each metrics page; ValueError for what is not name=http[s]://host:port/path."""
    pages: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, url = part.partition("=")
        parts = urlsplit(url)
        if not equals or not name.strip() or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{part[:200]!r} should be name=http://host:port/metrics")
        if name.strip() in pages:
            raise ValueError(f"the name {name.strip()[:80]!r} is there twice")
        pages[name.strip()] = url
    if len(pages) > _MOST_PAGES:
        raise ValueError(f"{len(pages)} pages; {_MOST_PAGES} at most")
    return pages
