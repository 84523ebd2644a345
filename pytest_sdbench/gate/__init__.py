"""Every outcome is decided here."""
