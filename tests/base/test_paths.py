"""What others may read: no secrets of URLs, no path of a user, and no more of what was found than helps."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pytest_sdbench.base import environment
from pytest_sdbench.base.errors import QUOTED, SdbenchError, first_line, quoted
from pytest_sdbench.base.options import OPTIONS
from pytest_sdbench.base.paths import shown, told, user_cache, without_secrets

URLS = {
    "s3://bucket/folder": "s3://bucket/folder",
    "sftp://me:hush@host/folder": "sftp://***@host/folder",
    "s3://KEY:hu/sh@bucket/folder": "s3://***@bucket/folder",
    "sftp://me:hu@sh@host/folder": "sftp://***@host/folder",
    "sftp://me:hu?s#h@host/folder": "sftp://***@host/folder",
    "https://hush@host/folder": "https://***@host/folder",
    "https://host/folder?token=hush": "https://host/folder",
    "https://host/folder?token=hush@home": "https://host/folder",
    "https://host/folder#hush": "https://host/folder",
    "hf://datasets/org/name@v1/file.tar": "hf://datasets/org/name@v1/file.tar",
    "simplecache::s3://me:hush@bucket/x": "simplecache::s3://***@bucket/x",
    "memory://x": "memory://x",
}


@pytest.mark.parametrize(("url", "shown"), URLS.items(), ids=range(len(URLS)))
def test_a_url_is_told_without_user_password_query_and_fragment(url: str, shown: str) -> None:
    assert without_secrets(url) == told(url) == shown
    texts = [told(f"cannot reach {url!r}: refused"), str(SdbenchError("x", file=url, found=url, remedy=url))]
    texts.append(str(SdbenchError(f"no answer of {url}", key=url)))
    assert [text for text in texts if "hu" in text and "hush" not in shown] == []
    assert told(f"{url} refused me@home? Try #2").endswith(" refused me@home? Try #2")


def test_paths_are_told_from_the_working_folder_or_the_home_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "alice", tmp_path / "alice" / "work"
    work.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    texts = {
        f"{work}/cards/x.md": "cards/x.md",
        f"{home}/models": "~/models",
        f"{home}": "~",
        f"{work}": ".",
        f"{home}x/models": f"{home}x/models",
        f"no such file: '{home}/a b', nor {work}/c": "no such file: '~/a b', nor c",
        "/data/models": "/data/models",
        f"/mnt{home}/x": f"/mnt{home}/x",
    }
    assert {text: told(text) for text in texts} == texts
    assert (shown(work / "x"), shown(home / "x"), shown("/data/alice/x")) == ("x", "~/x", "x")
    assert "alice" not in str(
        SdbenchError(f"not {home}/x", file=work / "card.md", found=home, remedy=f"{home}")
    )


def test_a_working_folder_that_is_gone_and_nobodys_home_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError

    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(Path, "home", nobody)
    assert told("/a/b") == "/a/b"


def test_the_cache_may_be_named_from_the_home_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the environment of a YAML file has it, where no shell follows the sign."""
    monkeypatch.setenv("SDBENCH_CACHE", "~/cache")
    assert user_cache() == Path.home() / "cache"


DEEP: list[object] = []
for _ in range(100_000):
    DEEP = [DEEP]
LONG = {
    "a text": "x" * 100_000,
    "lines": "x\n" * 50_000,
    "a list": list(range(100_000)),
    "a number": 10**5000,
    "bytes": b"\xff" * 100_000,
    "nesting": DEEP,
}


@pytest.mark.parametrize("found", LONG.values(), ids=LONG)
def test_what_was_found_is_quoted_in_part(found: object) -> None:
    assert len(quoted(found)) <= 2 * QUOTED
    error = SdbenchError("wrong", file="x.md", key="k" * 10_000, found=found)
    assert len(str(error)) < 4 * QUOTED
    assert str(error).startswith("x.md: k")
    if not isinstance(found, list):
        assert pickle.loads(pickle.dumps(error)).found == found


def test_messages_of_others_are_cut_too() -> None:
    assert len(first_line(ValueError("x" * 100_000))) <= QUOTED
    assert len(str(SdbenchError("x" * 100_000))) < 5000
    with pytest.raises(Exception, match="give a whole number") as raised:
        OPTIONS["--sdbench-samples"].read("x" * 100_000)
    assert len(str(raised.value)) < 2 * QUOTED


def test_a_processor_without_a_model_name_goes_by_no_name_of_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "_cpu_name", environment.platform.machine)
    found = []
    for name in ("alice-laptop", "bobs-desk"):
        monkeypatch.setattr(environment.platform, "node", lambda name=name: name)
        found.append(environment.timed_on("cpu"))
        assert name not in found[-1]
    assert found[0] != found[1]
    assert found[1] == environment.timed_on("cpu")
