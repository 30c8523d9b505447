"""README.md and docs/: examples run, options exist, links lead somewhere, and every public name has its place."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from typer.main import get_command

from hf_neuroplastic.audio.recipe import read_yaml
from hf_neuroplastic.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
REPOSITORY = "https://github.com/hf-neuroplastic/hf-neuroplastic/blob/main/"
COMMAND = get_command(app)
SCRIPTS = [*ROOT.glob("examples/**/*.py"), ROOT / "kernels" / "benchmarks" / "run.py"]
MODULES = {
    "hf_neuroplastic.md": ("hf_neuroplastic",),
    "audio.md": ("hf_neuroplastic.audio", "hf_neuroplastic.audio.augment"),
    "metrics.md": ("hf_neuroplastic.audio.metrics",),
}
OTHERS = ("accelerate", "torchrun", "pip", "python")  # programs whose options are their own
STEPS = {"1000": "4", "500": "2"}  # what examples say, and what a test has time for


def parametrised(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for kind, block in fenced if kind == language]


def lines_of_commands(page):
    """Lines of shell in a page's blocks, commands joined by && apart."""
    shell = [block for language in ("bash", "") for block in blocks(page, language)]
    return [part.strip() for block in shell for line in block.splitlines() for part in line.split("&&")]


def option_names(command):
    """Of a click command, and of all commands inside."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(option_names, getattr(command, "commands", {}).values())) | {"--help"}


@parametrised([page for page in PAGES if blocks(page, "python")])
def test_examples_run(page, tmp_path, monkeypatch):
    """One namespace for a page; a small detector stands in for the Hub's models, and is what `out/model` holds."""
    from detectors import save_detector

    monkeypatch.chdir(tmp_path)
    small = save_detector("wav2vec2", tmp_path / "small")
    save_detector("wav2vec2", tmp_path / "out" / "model")
    rows = [{"input_values": torch.randn(800), "labels": torch.tensor(index % 2)} for index in range(8)]
    namespace = {"train_dataset": rows}
    for block in blocks(page, "python"):
        for said, done in STEPS.items():
            block = re.sub(rf"\b{said}\b", done, block)
        exec(compile(block.replace("facebook/wav2vec2-base", str(small)), str(page), "exec"), namespace)


@pytest.mark.parametrize(
    ("page", "module", "taken"), [("stream", "stream.settings", "stream_of"), ("detector", "recipe", "recipe_of")]
)
def test_settings_are_taken(page, module, taken, tmp_path):
    found = blocks(DOCS / f"{page}.md", "yaml")
    assert found
    for block in found:
        (tmp_path / "settings.yaml").write_text(block)
        settings = read_yaml(tmp_path / "settings.yaml")
        del settings["model"], settings["data"]
        getattr(importlib.import_module(f"hf_neuroplastic.audio.{module}"), taken)(settings)


@parametrised(PAGES)
def test_commands_and_their_options_exist(page):
    for line in lines_of_commands(page):
        words = shlex.split(line, comments=True)
        script = next((word for word in words if word.endswith(".py") and (ROOT / word).is_file()), None)
        program = next((word for word in words if word.endswith("hf-neuroplastic") or word == "hf_neuroplastic"), None)
        if program is not None:
            rest, command = words[words.index(program) + 1 :], COMMAND
            while rest and rest[0] in getattr(command, "commands", {}):
                command, *rest = command.commands[rest[0]], *rest[1:]
            assert command is not COMMAND, line
            known = option_names(command)
        elif script is not None:
            rest = words[words.index(script) + 1 :]
            known = set(re.findall(r'"(--[a-z-]+)"', (ROOT / script).read_text()))
        else:
            assert not any(word.endswith(".py") for word in words), f"no such script: {line}"
            continue
        assert {word for word in rest if word.startswith("--")} <= known, line


@parametrised(PAGES)
def test_options_in_sentences_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    ours = [code for code in re.findall(r"`([^`\n]+)`", text) if not code.startswith(OTHERS)]
    said = {name for code in ours for name in re.findall(r"(?<![\w-])--[a-z][a-z_-]*", code)}
    scripts = {name for script in SCRIPTS for name in re.findall(r'"(--[a-z-]+)"', script.read_text())}
    assert said <= option_names(COMMAND) | scripts


@pytest.mark.parametrize("name", sorted(COMMAND.commands))
def test_every_command_is_described(name):
    inside = getattr(COMMAND.commands[name], "commands", {})
    for each in [f"{name} {command}" for command in inside] or [name]:
        assert f"| `{each}` |" in (DOCS / "detector.md").read_text()


def anchors(page):
    """Of a page's headings, as mkdocs makes them, and of what mkdocstrings writes."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@parametrised([*PAGES, ROOT / "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(REPOSITORY):
            assert (ROOT / target.removeprefix(REPOSITORY)).exists(), target
        elif not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target
            assert page.parent == ROOT or there.is_relative_to(DOCS) or there.suffix == ".png", target


@parametrised(PAGES)
def test_files_that_are_named_are_there(page):
    for name in re.findall(r"\b(?:examples|kernels|tests|hf_neuroplastic)/[\w/.-]+\.\w+", page.read_text()):
        assert (ROOT / name).exists() or (ROOT / "kernels" / "torch-ext" / name).exists(), name


def test_every_example_is_listed():
    listed = set(re.findall(r"`([\w]+\.(?:py|sh))`", (DOCS / "index.md").read_text()))
    assert listed == {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh")}


def test_every_page_is_in_the_navigation():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for each in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(each)]

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(leaves(navigation)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", [*MODULES, "kernels.md"])
def test_every_public_name_is_on_its_page(page):
    held = re.findall(r"^::: (\S+)$", (DOCS / "api" / page).read_text(), re.MULTILINE)
    assert len(set(held)) == len(held)
    for module in MODULES.get(page, ()):
        assert {f"{module}.{name}" for name in importlib.import_module(module).__all__} <= set(held)
    if page == "kernels.md":
        from neuroplastic_kernels.dispatch import FORMS

        assert {f"neuroplastic_kernels.dispatch.{name}" for name in (*FORMS, "select")} <= set(held)
    for name in held:
        parts = name.split(".")
        owner = max(count for count in range(1, len(parts)) if _module(".".join(parts[:count])))
        assert hasattr(importlib.import_module(".".join(parts[:owner])), parts[owner]), name


def _module(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


@parametrised(PAGES)
def test_names_of_the_package_in_sentences_exist(page):
    import hf_neuroplastic

    for owner, name in re.findall(r"`(DropIn|DropInConfig|NeuroPlastic|DropInCallback)\.(\w+)", page.read_text()):
        assert hasattr(getattr(hf_neuroplastic, owner), name), f"{owner}.{name}"


def test_the_commands_of_readme_are_marked():
    text = (ROOT / "README.md").read_text()
    for mark in ("demo", "test"):
        assert re.search(rf"<!-- {mark} command -->\n```\npython3 -m venv .venv && .+\n```\n", text)
    assert len(text.splitlines()) <= 100
