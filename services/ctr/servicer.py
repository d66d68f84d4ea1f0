"""CtrService: a request's arrays checked, scored by one version of the model, answered in the order asked."""

import grpc
import numpy as np
from prometheus_client import Counter

from services.ctr.loading import Served
from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.ctr import scorer
from vitrine.runtime import metrics
from vitrine.runtime.follow import Followed

scored = Counter("vitrine_ctr_candidates_total", "Candidates scored.", registry=metrics.REGISTRY)
unknown = Counter("vitrine_ctr_unknown_ads_total", "Candidates unknown to the model.", registry=metrics.REGISTRY)


class CtrServicer(ctr_pb2_grpc.CtrServiceServicer):
    """Score with the model being served."""

    def __init__(self, followed: Followed[Served]) -> None:
        self._followed = followed

    def Score(self, request: ctr_pb2.ScoreRequest, context: grpc.ServicerContext) -> ctr_pb2.ScoreResponse:  # noqa: N802
        served = self._followed.current
        keys, weights, ads = request.context.keys, request.context.weights, request.ad_ids
        scorer.check_sizes(len(keys), len(weights), len(ads))
        pctrs, unknown_ads = served.scorer.score(
            np.fromiter(keys, np.uint64, len(keys)),
            np.fromiter(weights, np.float32, len(weights)),
            np.fromiter(ads, np.uint64, len(ads)),
        )
        scored.inc(len(ads))
        unknown.inc(unknown_ads)
        return ctr_pb2.ScoreResponse(version=served.version, pctrs=pctrs.tolist(), unknown_ads=unknown_ads)
