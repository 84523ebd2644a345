"""Quality metrics: numbers alone, streaming and in float64."""
