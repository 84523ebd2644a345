"""What ``python -m pytest_sdbench`` does, a file a command."""
