"""What a run found, for people (Markdown) and for programs (JSON)."""
