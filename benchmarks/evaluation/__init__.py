"""Measure the evaluation engine beside the published procedure."""
