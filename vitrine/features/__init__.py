"""Features: raw value -> key, and the arithmetic of the two towers; the same in training, matching and scoring."""

from vitrine.features.context import ad_features, user_features
from vitrine.features.schema import SCHEMA, FeatureSchema, Field, feature_keys, string_id
from vitrine.features.towers import UserTowers, tower, towers

__all__ = [
    "SCHEMA",
    "FeatureSchema",
    "Field",
    "UserTowers",
    "ad_features",
    "feature_keys",
    "string_id",
    "tower",
    "towers",
    "user_features",
]
