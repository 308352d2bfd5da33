"""README, CONTRIBUTING and docs: code compiles, every `globalvit` command is understood, links lead somewhere.

What runs the code is in tests/docs.
"""

import ast
import re
import shlex
import sys
from importlib import import_module
from urllib.parse import urlparse

import pytest
from pages import anchors, block_commands, blocks, links, pages, span_commands

from globalvit.cli import options
from globalvit.cli.examples import EXAMPLES
from globalvit.cli.main import COMMANDS, main
from globalvit.models.variants import PUBLISHED
from globalvit.weights import catalog

GAP = "…"


def test_python_blocks_compile(root):
    for place, _, code in blocks(root, "python"):
        compile(code, place, "exec")


@pytest.fixture
def parse_only(monkeypatch):
    """Commands end with status 0 once their options are understood; `train` prints its settings."""
    real = options.parse

    def parse(*args, **kwargs):
        real(*args, **kwargs)
        raise SystemExit(0)

    for name in COMMANDS:
        import_module(f"globalvit.cli.{name}")
    for name, module in list(sys.modules.items()):
        if name.startswith("globalvit.cli.") and module is not options and hasattr(module, "parse"):
            monkeypatch.setattr(module, "parse", parse)


def understand(words, capsys):
    """Exit status of a command and what it says; what the pages name is not here, so 1 is as good as 0."""
    harmless = ["--print-config"] if words[0] == "train" and "--help" not in words else []
    return main([*words, *harmless]), capsys.readouterr().err


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("found", [block_commands, span_commands])
def test_commands_are_understood(found, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = list(found(root))
    assert len(shown) > 30
    for place, words in shown:
        status, said = understand(words, capsys)
        is_cut_short = found is span_commands and " requires " in said
        assert status != 2 or is_cut_short, f"{place}: {' '.join(words)}: {said}"


@pytest.mark.usefixtures("parse_only")
def test_examples_of_help_are_understood(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, examples in EXAMPLES.items():
        assert len(examples) == 2, command
        for example in examples:
            words = shlex.split(example)
            assert example.startswith(f"globalvit {command}"), example
            status, said = understand(words[1:], capsys)
            assert status != 2, f"{example}: {said}"


def help_pages(capsys, words=()):
    """Every command, and its help page."""
    assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    yield words, page
    listed = page.partition("\ncommands:\n")[2].partition("\n\n")[0]
    for name in re.findall(r"^  (\w+) ", listed, re.M):
        yield from help_pages(capsys, (*words, name))


def test_every_help_page_starts_with_examples(capsys):
    pages = dict(help_pages(capsys))
    assert {" ".join(words) for words in pages if words} == set(EXAMPLES)
    for words, page in pages.items():
        assert not words or re.search(
            r"^usage: [^\n]+\n\n(?:.+\n)+\nexamples:\n  globalvit .+\n  globalvit .+\n\n", page
        )


def test_help_of_train_shows_the_defaults_of_the_recipe(capsys):
    main(["train", "--help"])
    page = capsys.readouterr().out
    assert "Defaults below are those of finetune; --config NAME --help shows" in page
    assert re.search(r"--layer-decay X [^(]+\(default: 0\.7\)", page)
    main(["train", "--config", "gcvit_tiny", "-h"])
    page = capsys.readouterr().out
    assert "Defaults below are those of gcvit_tiny;" in page
    assert re.search(r"--lr X +peak learning rate \(default: 0\.005\)", page)
    assert main(["train", "--lrr", "3", "--help"]) == 0
    assert "those of finetune" in capsys.readouterr().out


def test_links_lead_somewhere(root):
    for page in pages(root):
        for place, target in links(page):
            address = urlparse(target)
            if address.scheme:
                assert address.scheme == "https", f"{place}: {target}"
                assert "." in address.netloc, f"{place}: {target}"
                continue
            there = (page.parent / address.path) if address.path else page
            assert there.exists(), f"{place}: {target} does not exist"
            assert not address.fragment or address.fragment in anchors(there), f"{place}: {target} has no such heading"


def texts(package):
    """Every text of the package, with an ellipsis for what is filled in."""
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_that_are_explained_are_the_package_s(root, package):
    lines = (root / "docs/troubleshooting.md").read_text().splitlines()
    messages = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert len(messages) > 20
    known = set(texts(package))
    for message in messages:
        pieces = [piece.strip() for piece in message.split(GAP)]
        assert any(holds(text, pieces) for text in known), message


def holds(text, pieces):
    """Whether a text holds all pieces in their order."""
    place = 0
    for piece in pieces:
        place = text.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


def test_the_table_of_models_is_that_of_the_registry(root):
    rows = [line.strip("| ").split(" | ") for line in (root / "README.md").read_text().splitlines() if "in1k |" in line]
    assert [row[0] for row in rows] == list(PUBLISHED)
    for name, params, gmacs, gflops, top1, weights in rows:
        figures = PUBLISHED[name]
        assert (float(params), float(gmacs)) == (round(figures.params / 1e6, 2), figures.gmacs)
        printed = ["–" if value is None else f"{value:.1f}" for value in (figures.published_gflops, figures.top1)]
        assert [gflops, top1] == printed
        assert weights.split(", ") == [record.weights for record in catalog.records(name)]
