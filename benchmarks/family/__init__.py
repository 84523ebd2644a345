"""Repeat the published experiments on the embedded family."""
