"""Tell which commit a run is of, and where to read of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pytest_sdbench.base.paths import without_secrets

_CI = {
    "commit": ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT", "BUILD_SOURCEVERSION"),
    "branch": ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "GIT_BRANCH"),
    "url": ("CI_JOB_URL", "BUILD_URL"),
}
"""Variables of GitHub, GitLab, Jenkins and Azure."""


def source(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `commit`, `branch` and `url` of a run, as far as they are known.

    What a CI service says of them goes before what git says of the folder. `changed` is there, and says
    ``yes``, where files differ from the commit.
    """
    found = {
        key: environment[name]
        for key, names in _CI.items()
        for name in reversed(names)
        if environment.get(name)
    }
    if run := environment.get("GITHUB_RUN_ID"):
        place = environment.get("GITHUB_SERVER_URL", ""), environment.get("GITHUB_REPOSITORY", "")
        found["url"] = f"{place[0]}/{place[1]}/actions/runs/{run}"
    if "url" in found:
        found["url"] = without_secrets(found["url"])
    if "commit" not in found and (commit := _git(folder, "rev-parse", "HEAD")):
        found["commit"] = commit
        found |= {"branch": branch} if (branch := _git(folder, "branch", "--show-current")) else {}
    if "commit" in found and _git(folder, "status", "--porcelain", "--untracked-files=no"):
        found["changed"] = "yes"
    return found


def _git(folder: Path, *words: str) -> str:
    """Return what git says of a folder; nothing where there is no git, or no repository."""
    command = ["git", "-C", str(folder), *words]
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        if asked.returncode == 0:
            return asked.stdout.strip()
    return ""
