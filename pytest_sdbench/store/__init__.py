"""Evidence on disks and in buckets."""
