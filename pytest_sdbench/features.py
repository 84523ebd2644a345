"""Measure images: one pass per extractor, one float32 row per image."""

from __future__ import annotations

CLIP_COLUMN = "clip_score"
"""Column of the cosine of image and caption, [n]."""


def feature_column(extractor: str) -> str:
    """Return the column of an extractor's features, [n, D]."""
    return extractor


def logits_column(extractor: str) -> str:
    """Return the column of an extractor's class logits, [n, classes]."""
    return f"{extractor}-logits"
