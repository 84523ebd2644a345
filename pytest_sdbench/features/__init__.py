"""From pixels to columns of evidence: extractors, image sets and reference statistics."""
