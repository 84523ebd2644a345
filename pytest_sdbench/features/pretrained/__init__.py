"""Extractors with weights that others publish: preference models, CLIP's and DINOv2's features."""
