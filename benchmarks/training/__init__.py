"""Measure a training step beside the published script."""
