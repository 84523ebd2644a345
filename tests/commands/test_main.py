"""The commands beside pytest: doctor, draft, table, stats."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands import sample
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.sample import protocols_of
from pytest_sdbench.evaluation.engine import Work
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.protocols import scenes
from pytest_sdbench.suite.settings import Settings
from tests.project import make_card, make_project


def test_module_runs_and_lists_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "pytest_sdbench", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("doctor", "plan", "draft", "table", "stats", "score", "compare"):
        assert command in done.stdout


class TestTable:
    def test_without_cards_it_writes_the_packaged_tables(self, capsys):
        assert main(["table"]) == 0
        text = capsys.readouterr().out
        assert "| BK-SDM-Small " in text
        assert "27.4531" in text

    def test_results_are_shown_beside_the_claims(self, tmp_path, pristine_checkpoint, capsys):
        card = make_project(tmp_path, pristine_checkpoint, claims={"clip_score": 0.25})
        row = {"node_id": "cards/mini.md::test_quality[mini-clip_score]", "card": "mini", "test": "quality"}
        row |= {"name": "mini-clip_score", "metric": "clip_score", "protocol": "mini"}
        row |= {"measured": 0.1234, "n": 72, "verdict": "fail", "reason": "worse"}
        results = tmp_path / "results.json"
        results.write_text(json.dumps({"schema_version": 1, "environment": {}, "results": [row]}))
        out = tmp_path / "table.md"
        assert main(["table", str(card), "--results", str(results), "-o", str(out)]) == 0
        assert "0.1234" in out.read_text(encoding="utf-8")
        assert main(["table", "-o", str(tmp_path / "nowhere" / "table.md")]) == 2
        assert "nowhere" in capsys.readouterr().err

    @pytest.mark.parametrize("content", ["{}", "no json", '{"schema_version": 99, "results": []}'])
    def test_results_of_another_kind_are_refused(self, tmp_path, content, capsys):
        results = tmp_path / "results.json"
        results.write_text(content)
        assert main(["table", "--results", str(results)]) == 2
        assert str(results) in capsys.readouterr().err


class TestDraft:
    def test_draft_is_a_card_of_the_checkpoint_and_overwrites_none(
        self, tmp_path, pristine_checkpoint, capsys
    ):
        out = tmp_path / "model.md"
        assert main(["draft", str(pristine_checkpoint), "-o", str(out)]) == 0
        assert read_card(out).size["unet"].exact is not None
        ModelCard.load(out)
        out.write_text("mine")
        assert main(["draft", str(pristine_checkpoint), "-o", str(out)]) == 2
        assert out.read_text() == "mine"
        assert "never overwritten" in capsys.readouterr().err
        assert main(["draft", str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err


class TestFiles:
    @pytest.mark.parametrize("command", ["plan", "table", "stats", "draft"])
    def test_a_file_that_cannot_be_written_is_told_before_anything_is_done(
        self, tmp_path, command, capsys, monkeypatch
    ):
        (tmp_path / "file").write_text("")
        out = str(tmp_path / "file" / "x.npz")
        words = {"plan": ["--json"], "stats": ["scenes:0-9", "--out"], "draft": [str(tmp_path), "--out"]}
        assert main([command, *words.get(command, ["--out"]), out]) == 2
        told = capsys.readouterr()
        assert "cannot be written" in told.err
        assert told.out == ""
        assert "file" in told.err

    @pytest.mark.parametrize("words", [["table", "--out"], ["comment", "r.json", "-o"]])
    def test_a_card_is_never_written_over(self, tmp_path, words, capsys):
        card = tmp_path / "mine.md"
        card.write_text(text := "---\nsdbench: {checkpoint: ./}\n---\n")
        assert main([*words, str(card)]) == 2
        assert "it is a card" in capsys.readouterr().err
        config = pytest.Config.fromdictargs({}, ["--sdbench", f"--sdbench-report={card}"])
        with pytest.raises(pytest.UsageError, match=r"mine\.md cannot be written: it is a card"):
            Settings.from_pytest_config(config)
        assert card.read_text() == text

    def test_what_is_interrupted_ends_in_a_line(self, monkeypatch, capsys):
        def interrupt(options):
            raise KeyboardInterrupt

        monkeypatch.setattr("pytest_sdbench.commands.plan.run", interrupt)
        assert main(["plan"]) == 130
        assert capsys.readouterr().err.strip() == "interrupted"

    def test_what_this_user_may_not_read_is_named_without_a_traceback(self, monkeypatch, capsys):
        def refuse(options):
            raise PermissionError(errno.EACCES, "Permission denied", "models/tokenizer")

        monkeypatch.setattr("pytest_sdbench.commands.plan.run", refuse)
        assert main(["plan"]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: models/tokenizer: this user may not read or write it. Let its owner")

    def test_a_reader_that_has_seen_enough_ends_a_command(self):
        reader, pipe = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "pytest_sdbench", "table"]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
        os.close(pipe)
        assert (done.returncode, done.stderr) == (141, b"")

    def test_errors_call_options_as_the_command_does(self, tmp_path, capsys):
        card = make_card(tmp_path / "one.md", protocol="scenes-quick", checkpoint="nobody/nothing")
        assert main(["sample", str(card), "--store", str(tmp_path / "store")]) == 1
        told = capsys.readouterr().err
        assert "Fetch it: --download" in told
        assert "--weights one=PATH" in told


class TestSample:
    def test_images_are_counted_at_the_end_and_in_the_store(
        self, tmp_path, pristine_checkpoint, monkeypatch, capsys
    ):
        card, store = make_project(tmp_path, pristine_checkpoint), tmp_path / "store"
        # Whoever removes a store does so while images are made.
        monkeypatch.setattr("pytest_sdbench.evaluation.maker.make", lambda *_, n, **__: Work(n, 1.0))
        words = ["sample", str(card), "--store", str(store), "--images", "2"]
        assert main(words) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert "0 of 2 images are in the store" in told.err
        with pytest.raises(EvidenceError, match="0 of 3 images"):
            evaluate(
                checkpoint_of(read_card(card)), protocols_of(read_card(card))[0], Workspace(store), samples=3
            )

    def test_weights_of_no_card_are_refused_before_anything_is_sampled(self, tmp_path, capsys):
        card, store = make_card(tmp_path / "one.md"), tmp_path / "store"
        arguments = ["sample", str(card), "--store", str(store), "--weights"]
        assert main([*arguments, f"two={tmp_path}"]) == 2
        assert "Name one" in capsys.readouterr().err
        assert not store.exists()

    @pytest.mark.parametrize("key", ["v1", "x/v1", "x/v1/README.md", "./x/v1/README.md"])
    def test_weights_are_of_the_one_card_that_their_key_means(self, tmp_path, key, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        cards = [str(make_card(Path(place, "v1", "README.md"), protocol="scenes-quick")) for place in "xy"]
        given = {}
        monkeypatch.setattr(
            sample, "requests_of", lambda card, _, weights, **__: given.update({card.name: weights}) or []
        )
        status = main(["sample", *cards, "--store=store", f"--weights={key}=folder"])
        assert (status, given) == ((2, {}) if key == "v1" else (0, {"x/v1": Path("folder"), "y/v1": None}))
        assert ("the name of 2 cards" in capsys.readouterr().err) is (key == "v1")


class TestStats:
    def test_statistics_of_scenes_equal_numpy_on_their_features(self, tmp_path, capsys):
        import torch

        from pytest_sdbench.features.classifier import load_classifier

        out = tmp_path / "scenes.npz"
        words = ["stats", "scenes:20000000-20000199", "-o", str(out), "--extractor", "scenes-classifier"]
        assert main([*words, "--features", "16"]) == 0
        assert "200 images" in capsys.readouterr().out
        images = torch.from_numpy(scenes.render_batch(range(20_000_000, 20_000_200))).permute(0, 3, 1, 2)
        features = load_classifier()(images)["features"].double().numpy()
        with np.load(out, allow_pickle=False) as found:
            np.testing.assert_allclose(found["mu"], features.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(found["sigma"], np.cov(features, rowvar=False), atol=1e-5)
            assert found["features"].shape == (16, 96)

    def test_a_folder_of_images_is_squashed_first_when_asked(self, tmp_path, capsys):
        folder = tmp_path / "images"
        folder.mkdir()
        for index, picture in enumerate(scenes.render_batch(range(8), 128)):
            Image.fromarray(picture).save(folder / f"{index}.png")
        out = tmp_path / "images.npz"
        words = ["stats", str(folder), "-o", str(out), "--extractor", "scenes-classifier", "--resize", "64"]
        assert main(words) == 0
        with np.load(out, allow_pickle=False) as found:
            assert found["mu"].shape == (96,)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ["scenes:0-9", "--layouts", "pile"],
                "--layouts: no scene has this layout (found 'pile'). Give one",
            ),
            (["nowhere", "--layouts", "one"], "--layouts: layouts are those of scenes (found 'nowhere')"),
            (
                ["scenes:0-9", "--domain", "cats"],
                "--domain: scenes have no such domain (found 'cats'). Give all, faces, things",
            ),
            (["nowhere", "--domain", "faces"], "--domain: domains are those of scenes (found 'nowhere')"),
            (["images.zip", "scenes:0-9"], "a range of scenes stands alone"),
            (["scenes:5", "--extractor", "scenes-classifier"], "5"),
            (["scenes:9-5", "--extractor", "scenes-classifier"], "9-5"),
            (["scenes:a-b", "--extractor", "scenes-classifier"], "a-b"),
            (["nowhere", "--extractor", "scenes-classifier"], "nowhere"),
        ],
    )
    def test_a_source_or_a_layout_that_makes_no_sense_is_named(self, tmp_path, words, message, capsys):
        assert main(["stats", *words, "-o", str(tmp_path / "x.npz")]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("sizes", "words", "message"),
        [
            ((64, 64), (), None),
            ((64, 32), (), "1.png: every image must have 64x64 pixels (found '32x32')"),
            ((32, 32), (), "0.png: every image must have 64x64 pixels (found '32x32')"),
            ((64, 32), ("--resize", "64"), None),
            ((64, 64), ("--resize", "32"), "resize: scenes-classifier takes images of 64 pixels (found 32)"),
            ((64, 64), ("--resize", "0"), "--resize: give 1 or more (found 0)"),
            ((64, 64), ("--features", "-1"), "--features: give 0 or more (found -1)"),
            ((64, 64), ("--extractor", "local:scenes-clip"), "this extractor has cosine, and no features"),
        ],
    )
    def test_images_that_the_extractor_does_not_take_are_named(self, tmp_path, sizes, words, message, capsys):
        for index, size in enumerate(sizes):
            Image.new("RGB", (size, size), (90 * index, 0, 0)).save(tmp_path / f"{index}.png")
        command = ["stats", str(tmp_path), "-o", str(tmp_path / "s.npz"), "--extractor", "scenes-classifier"]
        assert main([*command, *words]) == (2 if message else 0)
        assert (message or "") in capsys.readouterr().err

    @pytest.mark.parametrize("colour", ["no colour", "#ffffff80", "rgba(1, 2, 3, 4)"])
    def test_a_background_is_a_colour(self, colour, capsys):
        with pytest.raises(SystemExit) as raised:
            main(["stats", "x", "-o", "s.npz", "--background", colour])
        assert raised.value.code == 2
        assert f"no colour: {colour!r}" in capsys.readouterr().err


class TestDoctor:
    def test_a_card_that_has_everything_is_healthy_and_a_folder_stands_for_its_cards(
        self, tmp_path, pristine_checkpoint, capsys
    ):
        card = make_project(tmp_path, pristine_checkpoint)
        (card.parent / "notes.md").write_text("# Notes")
        (card.parent / ".#mini.md").symlink_to("me@host.42:1700000000")  # the lock of an editor
        for place in (card, card.parent):
            assert main(["doctor", str(place)]) == 0
            text = capsys.readouterr().out
            assert "Nothing is missing" in text
            assert "fingerprint" in text
            assert "notes" not in text

    def test_what_is_missing_is_named_once_with_its_remedy_and_users(self, tmp_path, capsys):
        cards = [
            make_card(
                tmp_path / f"{name}.md",
                claims={"fid": 17.0},
                protocol="coco30k-bksdm",
                margins={"fid": 0.4},
                checkpoint="nobody/nothing",
            )
            for name in ("one", "two")
        ]
        assert main(["doctor", *map(str, cards)]) == 1
        text = capsys.readouterr().out
        assert text.count("needed by one, two") >= 4  # weights, prompts, statistics, extractors
        for remedy in ("--sdbench-download", "--sdbench-data"):
            assert remedy in text

    def test_damaged_weights_a_broken_card_and_wrong_prompts_are_told_apart(
        self, tmp_path, tiny_checkpoint, capsys
    ):
        card = make_project(tmp_path, tiny_checkpoint)
        weights = card.parent / "mini-sd" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        broken = make_card(card.with_name("broken.md"), claims={"clip_score": 29.0})
        data = tmp_path / "data" / "mscoco_val2014_30k"
        data.mkdir(parents=True)
        (data / "metadata.csv").write_text("file_name,text\na.jpg,A cat.\n")
        coco = make_card(
            card.with_name("coco.md"), claims={"fid": 17.0}, protocol="coco5k", margins={"fid": 0.4}
        )
        assert main(["doctor", str(card), str(broken), str(coco), "--data", str(data.parent)]) == 1
        text = capsys.readouterr().out
        cells = {
            line.split()[0]: line.split()[1:]
            for line in text.splitlines()
            if line.startswith(("mini", "broken", "coco"))
        }
        assert cells["mini"][:2] == ["ok", "broken"]
        assert cells["broken"][0] == "broken"
        assert cells["coco"][2] == "broken"
        assert weights.name in text
        assert "29.0" in text
        assert "metadata.csv" in text
        assert "sha256" in text.lower() or "checksum" in text.lower()

    def test_the_same_words_in_two_folders_are_two_checkpoints(self, tmp_path, pristine_checkpoint, capsys):
        here = make_project(tmp_path / "a", pristine_checkpoint)
        there = make_project(tmp_path / "b", pristine_checkpoint)
        shutil.rmtree(there.parent / "mini-sd")
        assert main(["doctor", str(here), str(there)]) == 1
        assert "Missing or broken" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
@pytest.mark.parametrize("words", [[], ["--out", "/dev/full"]], ids=["redirected", "out"])
def test_a_full_disk_is_told_without_a_traceback(words: list[str]) -> None:
    command = [sys.executable, "-m", "pytest_sdbench", "table", *words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Make room on its disk" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    out.write_text("before\n", encoding="utf-8")

    def stop(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", stop)
    assert main(["table", "--out", str(out)]) == 2
    assert "Make room on its disk" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "before\n"
    assert list(tmp_path.iterdir()) == [out]
