"""The router before the shards of an index: fans out to one replica a shard, merges, survives those that die."""
