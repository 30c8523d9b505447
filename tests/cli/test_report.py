"""The page that compares runs: whole in one file, and telling what the runs' own files tell."""

import json
import re
from html.parser import HTMLParser

import pytest
from detectors import save_detector
from typer.testing import CliRunner

from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    corpus = write_corpus(folder / "corpus", utterances={"train": 16, "dev": 8, "eval": 16})
    model = save_detector("ast", folder / "model")
    (folder / "recipe.yaml").write_text(
        "dropin: {interval: 2, start: 1, maturity: 1, max_fraction: 0.1, threshold: .inf}\n"
    )
    for name, method in (("plain", "adamw"), ("<plastic>", "neuroplastic+dropin")):
        result = run(
            "train", "--config", folder / "recipe.yaml", "--model", model, "--data", corpus, "--method", method, "--steps", 6,
            "--batch-size", 4, "--seconds", 0.4, "--eval-every", 2, "--output", folder / name,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    result = run("evaluate", folder / "plain" / "model", "--data", corpus, "--output", folder / "again")
    assert result.exit_code == 0, result.output
    return folder


class Page(HTMLParser):
    """Tables as lists of rows, and names of tags and addresses."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.loads, self.cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        self.cell = None if self.cell is None else self.cell + data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None


def test_the_page_tells_what_the_runs_tell_and_loads_nothing(folders, tmp_path):
    names = ["plain", "<plastic>", "again"]
    result = run("report", *(folders / name for name in names), "--output", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert all(address.startswith(("#", "data:")) for address in page.loads)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"url\((?!#)", text)
    runs, attacks = page.tables
    assert [row[0] for row in runs[1:]] == names
    results = json.loads((folders / "plain" / "results.json").read_text())
    eer = f"{100 * results['evaluation']['figures']['eer']:.1f}"
    assert runs[1][runs[0].index("EER (%)")] == runs[3][runs[0].index("EER (%)")] == eer
    assert runs[1][runs[0].index("dev EER (%)")] == f"{100 * results['runs'][0]['dev_eer']:.1f}"
    assert attacks[0] == ["trials", *names]
    by_name = {row[0]: row[1] for row in attacks[1:]}
    for row in results["evaluation"]["table"]:
        shown = row["name"] if row["name"] == row["group"] else f"{row['name']} ({row['group']})"
        assert by_name[shown] == f"{100 * row['eer']:.1f}"
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert len(captions) == text.count("<svg") == 8
    assert captions[-1] == "Weak neurons (%) by layer: &lt;plastic&gt;"
    plasticity = json.loads((folders / "<plastic>" / "results.json").read_text())["runs"][0]["plasticity"]
    assert [row["step"] for row in plasticity] == [1, 2, 3, 4, 5, 6]
    assert [row["alpha_rms"] > 0 and len(row["weak"]) for row in plasticity[1:]] == [3] * 5, plasticity


@pytest.mark.parametrize("content", [None, "{", "[]", '{"runs": [{"steps": 3}, {}]}'])
def test_folders_without_results_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    result = run("report", tmp_path, "--output", tmp_path / "page.html")
    assert result.exit_code == 2
    assert str(tmp_path) in result.output.replace("\n", "")
    assert not (tmp_path / "page.html").exists()
