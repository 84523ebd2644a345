"""Metrics that read features: one file each, or one for those that share a computation."""
