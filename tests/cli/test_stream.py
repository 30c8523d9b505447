"""hf-neuroplastic stream: every arm through every stage, what is there is kept."""

import json

import pytest
import yaml
from detectors import save_detector
from filelock import FileLock
from typer.testing import CliRunner

from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.cli import app

SPLITS = ("train", "dev", "eval")
SETTINGS = {
    "start": "A01",
    "stages": ["A02", "A03"],
    "apart": "utterance",
    "examples": 4,
    "start_steps": 2,
    "evaluate": 8,
    "seeds": [0],
    "rates": [0.001, 0.002],
    "optimizers": ["adamw"],
    "arms": {
        "full": {},
        "everything": {"replay": 2, "anchor": "ewc", "strength": 1.0},
        "neurons": {"neurons": 2},
    },
    "recipe": {"steps": 2, "batch_size": 4, "seconds": 0.4},
}


def run(*arguments):
    return CliRunner().invoke(app, ["stream", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    attacks = {split: ["A01", "A02", "A03"] for split in SPLITS}
    corpus = write_corpus(folder / "corpus", utterances={"train": 48, "dev": 24, "eval": 24}, attacks=attacks)
    settings = {"model": str(save_detector("ast", folder / "model")), "data": str(corpus), **SETTINGS}
    (folder / "stream.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    result = run("--config", folder / "stream.yaml", "--output", folder / "out")
    assert result.exit_code == 0, result.output
    return folder


def courses(folder):
    return {path: json.loads(path.read_text()) for path in sorted((folder / "out" / "courses").glob("*.json"))}


def test_every_arm_has_gone_through_every_stage(folder):
    found = courses(folder)
    assert len(found) == 3 * 2
    for course in found.values():
        assert [list(row) for row in course["test"]] == [["A01", "A02", "A03"]] * 3
        assert all(0 <= rate <= 1 for part in ("dev", "test") for row in course[part] for rate in row.values())
        assert [len(each) for each in course["learning"]] == [2, 2]  # after each of two steps
        assert len(course["seconds"]) == 2
    first = [course["test"][0] for course in found.values()]
    assert all(row == first[0] for row in first)  # all start from one detector
    learned = {course["arm"]: course["learned"][0] for course in found.values()}
    assert learned["neurons, adamw"] < learned["full, adamw"] / 4
    table = json.loads((folder / "out" / "table.json").read_text())["table"]
    assert [row["arm"] for row in table] == ["full, adamw", "everything, adamw", "neurons, adamw"]
    assert (folder / "out" / "stream.html").read_text().count("<svg") == 2 + 3


def test_what_is_missing_is_run_and_the_rest_is_kept(folder):
    before = {path: path.stat().st_mtime_ns for path in courses(folder)}
    gone = sorted(before)[2]
    content = json.loads(gone.read_text())
    gone.unlink()
    result = run("--config", folder / "stream.yaml", "--output", folder / "out", "--processes", 2)
    assert result.exit_code == 0, result.output
    after = {path: path.stat().st_mtime_ns for path in courses(folder)}
    assert after.keys() == before.keys()
    assert [path for path in after if after[path] != before[path]] == [gone]
    again = json.loads(gone.read_text())
    assert again["test"] == content["test"]
    assert again["learning"] == content["learning"]


def test_a_folder_has_one_stream_at_a_time(folder):
    gone = sorted(courses(folder))[0]
    content = gone.read_text()
    gone.unlink()
    draft = folder / "out" / "starts" / ".0.1"  # of a process that was killed
    draft.mkdir()
    with FileLock(folder / "out" / ".lock"):
        result = run("--config", folder / "stream.yaml", "--output", folder / "out")
        assert result.exit_code == 2
        assert "a stream works in" in " ".join(result.output.split())
        assert draft.exists()
        assert not gone.exists()
    assert run("--config", folder / "stream.yaml", "--output", folder / "out").exit_code == 0
    assert json.loads(gone.read_text())["test"] == json.loads(content)["test"]
    assert not draft.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"examples": 5}, "holds a stream of other settings"),
        ({"data": None}, "lacks data"),
        ({"stages": ["A09"]}, "the data have no attack A09"),
        ({"colour": 1}, "a stream has no colour"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(folder, tmp_path, changes, words):
    settings = yaml.safe_load((folder / "stream.yaml").read_text()) | changes
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({k: v for k, v in settings.items() if v is not None}, sort_keys=False)
    )
    output = folder / "out" if "other settings" in words else tmp_path / "out"
    before = sorted(output.rglob("*"))
    result = run("--config", tmp_path / "s.yaml", "--output", output)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert sorted(output.rglob("*")) == before
