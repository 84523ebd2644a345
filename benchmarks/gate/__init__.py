"""Measure how often the gate is right."""
