"""Who makes the shards that a store lacks: this process, one of several, or the workers of a cluster."""
