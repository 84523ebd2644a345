"""What a word on the command line means: a card, a folder of cards, a checkpoint, a protocol."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_sdbench.base.errors import CardError, ProtocolError, SdbenchError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.compare import compare
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.shared import cards_of, protocol_of
from pytest_sdbench.commands.systems import system_of
from tests.project import make_card, make_project, make_protocol


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_stands_for_the_cards_in_all_its_folders(here: Path) -> None:
    wanted = [make_card(here / place) for place in ("cards/a.md", "cards/v1/README.md", "cards/v2/deep/b.MD")]
    for place in ("cards/.git/c.md", "cards/venv/d.md", "cards/node_modules/e/f.md", "cards/build/g.md"):
        make_card(here / place)
    made = make_card(here / "cards/env/lib/h.md")
    (here / "cards/env/pyvenv.cfg").touch()
    (here / "cards/v1/notes.md").write_text("# No card\n")
    (here / "cards/v2/round").symlink_to(here / "cards", target_is_directory=True)
    assert sorted(cards_of([Path("cards")])) == sorted(path.relative_to(here) for path in wanted)
    assert cards_of([Path("cards/env/lib")]) == [made.relative_to(here)]


@pytest.mark.parametrize("command", ["sample", "plan", "doctor", "table"])
def test_a_folder_without_a_card_is_no_success(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "models").mkdir()
    assert main([command, "models"]) == 2
    assert "models: there is no card in this folder" in capsys.readouterr().err


def test_a_card_is_named_by_its_file_or_its_name(here: Path) -> None:
    own = make_card(here / "cards" / "own.md")
    packaged = reference() / "cards" / "scenes-tiny.md"
    found = cards_of([Path("own"), Path("scenes-tiny"), Path("cards/own.md")])
    assert [path.absolute() for path in found] == [own, packaged]
    with pytest.raises(CardError, match=r"there is no such card.*scenes-tny.*scenes-tiny"):
        cards_of([Path("scenes-tny")])


def test_a_name_that_a_folder_and_its_card_have_is_the_cards(here: Path, pristine_checkpoint: Path) -> None:
    card = make_project(here, pristine_checkpoint)
    shutil.copytree(pristine_checkpoint, here / "mini")
    with pytest.raises(SdbenchError, match=r"a folder and a card have this name.*\./mini.*cards/mini\.md"):
        system_of("mini", None)
    assert system_of("./mini", None).card is None
    make_card(card, checkpoint="../mini")
    found = system_of("mini", None)
    assert found.card is not None
    assert found.card.path == card
    shutil.copytree(pristine_checkpoint, here / "scenes-tiny")
    assert system_of("scenes-tiny", None).card is None, "a packaged card is of another one"


def test_a_protocol_is_found_here_in_cards_and_beside_a_card(here: Path) -> None:
    paths = [make_protocol(here / place / "protocols" / "own.yaml") for place in ("", "cards")]
    assert protocol_of("own").path == paths[0]
    paths[0].unlink()
    assert protocol_of("own").path == paths[1]
    paths[1].unlink()
    with pytest.raises(ProtocolError, match="unknown protocol"):
        protocol_of("own")


def test_protocols_beside_cards_that_are_compared_are_found(here: Path, pristine_checkpoint: Path) -> None:
    folder = here / "models" / "foo"
    card = make_card(folder / "README.md", checkpoint=str(pristine_checkpoint), claims={}, protocols=["own"])
    path = make_protocol(folder / "protocols" / "own.yaml", n=4)
    made = compare(str(card), str(card), "own", Workspace(here / "store"))
    assert made.protocol.path == path
