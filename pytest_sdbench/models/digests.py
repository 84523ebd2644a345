"""What of a checkpoint's files identifies it: not notes of versions and paths, nor how lines end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_sdbench.base.files import known_sha256

_NOTES = {
    *("transformers_version", "dtype", "torch_dtype", "architectures"),
    *("name_or_path", "local_files_only", "is_local"),
    # What `EMAModel` adds to the configuration of a network, which does not know it.
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
}
VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files of a tokenizer, beside its configurations, that are read."""


def kept_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without private entries, and notes of versions and paths."""
    notes = _NOTES.union(key for key in config if key.startswith("_") and key != "_class_name")
    return {key: value for key, value in config.items() if key not in notes}


def vocabulary_digest(file: Path) -> str:
    """SHA-256 of a file of a vocabulary, whatever ends its lines: git on Windows converts them."""
    content = file.read_bytes()
    return (
        hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
        if b"\r" in content
        else known_sha256(file)
    )


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, without its layout."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
