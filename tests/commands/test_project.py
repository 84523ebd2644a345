"""Commands keep evidence and data where a run of pytest in the same folder keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sdbench.commands.main import parser
from pytest_sdbench.commands.shared import settle_places
from pytest_sdbench.suite.settings import Settings

FILES = {
    "pytest.ini": "[pytest]\nsdbench_store = evidence\nsdbench_data = data\n",
    "tox.ini": "[pytest]\nsdbench_store = /elsewhere/evidence\n",
    "setup.cfg": "[tool:pytest]\nsdbench_store = s3://bucket/evidence\n",
    "pyproject.toml": '[tool.pytest.ini_options]\nsdbench_store = "evidence"\n',
    "pyproject.toml without us": '[project]\nname = "mine"\n',
    "none": "",
}


@pytest.mark.parametrize("within", ["", "cards"])
@pytest.mark.parametrize("name", FILES)
def test_commands_and_pytest_mean_the_same_places(
    name: str, within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / within
    for folder in (here, tmp_path / "data"):
        folder.mkdir(exist_ok=True)
    if FILES[name]:
        (tmp_path / name.split()[0]).write_text(FILES[name])
    monkeypatch.chdir(here)
    asked = parser("import").parse_args(["import", "s.csv", "--metric=m", "--card=c", "--protocol=p"])
    config = pytest.Config.fromdictargs({}, ["--sdbench", str(here)])
    told = Settings.from_pytest_config(config)
    store = asked.store if "://" in asked.store else str(Path(asked.store).absolute())
    assert store == str(told.store)
    assert (asked.data and asked.data.absolute()) == told.data


def test_the_project_of_a_card_counts_and_not_that_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    (models / "data").mkdir(parents=True)
    (models / "pytest.ini").write_text(FILES["pytest.ini"])
    card = models / "mine.md"
    card.write_text("---\nsdbench: {checkpoint: ./}\n---\n")
    monkeypatch.chdir(tmp_path)
    for words, store in (
        (["sample", "models/mine.md"], str(models / "evidence")),
        (
            ["sample", "models", "--store=.sdbench"],
            ".sdbench",
        ),
    ):
        asked = parser("sample").parse_args(words)
        settle_places(asked, words)
        assert (asked.store, asked.data) == (store, models / "data")


@pytest.mark.parametrize("flag", ["--sdbench-store", "--sdbench-history"])
def test_a_file_url_without_a_folder_is_a_mistake_in_the_option(flag: str) -> None:
    config = pytest.Config.fromdictargs({}, ["--sdbench", f"{flag}=file://evidence"])
    with pytest.raises(pytest.UsageError, match=rf"{flag}: .*names no folder of this machine"):
        Settings.from_pytest_config(config)
