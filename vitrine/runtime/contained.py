"""What of a topic an artifact contains, and whether those offsets mean anything to this Kafka."""

from __future__ import annotations

from collections.abc import Mapping

from vitrine.artifacts import ArtifactError, Manifest


def offsets_of(manifest: Manifest, topic: str, cluster: str) -> dict[int, int]:
    """{partition: next offset} of a topic that the artifact contains; {} where it names none, and contains nothing.

    Raises ArtifactError where the offsets are of another cluster than `cluster`.
    """
    of = manifest.offsets.get("topics", {}).get(topic, {})
    if of and manifest.offsets["cluster"] != cluster:
        raise ArtifactError(
            f"{manifest.name} {manifest.version}: offsets.cluster: it contains {topic} of Kafka cluster "
            f"{manifest.offsets['cluster']}, and this is {cluster}: offsets of one mean nothing in the other. "
            "Way out: follow that cluster (VITRINE_KAFKA_URL), or publish under a fresh VITRINE_NAMESPACE"
        )
    return dict(of)


def offsets(topic: str, cluster: str, positions: Mapping[int, int]) -> dict[str, object]:
    """The offsets of a manifest, for `ArtifactStore.publish`: what is below the positions is contained."""
    return {"cluster": cluster, "topics": {topic: dict(positions)}}
