"""Click-rate models as artifacts, and the scorer; without torch."""

from vitrine.ctr.model import CtrModel
from vitrine.ctr.scorer import Scorer

__all__ = ["CtrModel", "Scorer"]
