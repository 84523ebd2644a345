"""Pictures and captions, from source to batch."""
