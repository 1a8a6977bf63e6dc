"""What README and docs/ say is true of the code."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import doc_blocks, doc_tables, prose

from bbcache.cli import serve
from bbcache.outcomes import SkipReason

if TYPE_CHECKING:
    from bbcache.postgres.server.cluster import PostgresBinaries

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAX_EXAMPLE_LINES = 25
_INDEX = ROOT / "docs/index.md"
MAX_HOST_LINES = 60
MAX_README_LINES = 90
MAX_LAYERS = 10
CLAIMS = 5
_RAW = "https://raw.githubusercontent.com/bbcache/bbcache"
MANY = 80


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    """The embedding example is short, runs as it stands, and prints what it says."""
    (example,) = doc_blocks.blocks(README, "python")
    assert len(example.splitlines()) <= MAX_EXAMPLE_LINES
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"\d+ bytes at 0/16B5A50: 1f8b\n", ended.stdout)


def _run_page(name: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> dict[str, Any]:
    """Run all Python blocks of a page in order, and compare what they print."""
    directory.mkdir()
    directory.chmod(0o711)  # PostgreSQL's user passes through
    monkeypatch.chdir(directory)
    names: dict[str, Any] = {"__name__": name}
    for block in doc_blocks.python_blocks((ROOT / "docs" / name).read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block.source, names)  # noqa: S102 - a page of this repository
        assert doc_blocks.matches(printed.getvalue(), block.output), printed.getvalue()
    return names


def test_the_host_of_the_embedding_page_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is the first block, short and standing alone; the page's other blocks go on from it."""
    page = (ROOT / "docs/embedding.md").read_text()
    assert page.index("```python") < page.index("```text") < page.index("\n|")
    assert len(doc_blocks.blocks(page, "python")[0].splitlines()) <= MAX_HOST_LINES
    names = _run_page("embedding.md", monkeypatch, tmp_path / "page")
    names["test_my_host_keeps_the_rules"]()


@pytest.mark.postgres
def test_the_tutorial_runs(
    monkeypatch: pytest.MonkeyPatch, newest_pg: PostgresBinaries, pg_dir: Path
) -> None:
    """Every block, on a real PostgreSQL, prints what the page says."""
    monkeypatch.setenv("BBCACHE_PG_BIN", str(newest_pg.bindir))
    names = _run_page("tutorial.md", monkeypatch, pg_dir / "tutorial")
    assert names["second"].pgdata_dir.name == "compute-2"


def test_the_blocks_of_a_page_are_found() -> None:
    """Blocks of Python with what they print; three dots stand for any text of one line."""
    page = "```python\na\n```\n\n```text\nb ... c\n```\n```sh\nd\n```\n```python\ne\n```\n"
    assert doc_blocks.python_blocks(page) == [("a\n", "b ... c\n"), ("e\n", "")]
    assert doc_blocks.blocks(page, "sh") == ["d\n"]
    assert doc_blocks.matches("b 1 c\n", "b ... c\n")
    assert not doc_blocks.matches("b 1\n2 c\n", "b ... c\n")
    assert not doc_blocks.matches("b 1 d\n", "b ... c\n")


def test_the_readme_opens_with_the_two_commands() -> None:
    """The first shell block has the demo and the tests, each with all its set-up."""
    commands = doc_blocks.blocks(README, "sh")[0].splitlines()
    assert [command.rsplit(" && ", 1)[1] for command in commands] == [
        ".venv/bin/bbcache demo",
        ".venv/bin/python -m pytest -n auto --dist loadfile",
    ]
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)


@pytest.mark.parametrize("path", sorted(doc_tables.DOCS.glob("*.md")), ids=lambda path: path.name)
def test_tables_say_what_is_declared(path: Path) -> None:
    """A table of settings, metrics or outcomes in docs/ is the one that the code declares."""
    page = path.read_text()
    assert page == doc_tables.filled_in(page), "run: python tests/support/doc_tables.py"


def test_every_declaration_has_its_table() -> None:
    """Each table of declarations stands in docs/ once; what is declared cannot be left out."""
    pages = [path.read_text() for path in doc_tables.DOCS.glob("*.md")]
    found = [name for page in pages for name in doc_tables.names_in(page)]
    assert sorted(found) == sorted(doc_tables.TABLES)


def test_a_table_follows_its_declaration() -> None:
    """A row that is changed, added or removed in the docs by hand is a difference."""
    page = doc_tables.filled_in("<!-- table: reasons of skips -->\n<!-- end of table -->\n")
    rows = page.splitlines()
    assert rows[3:-1] == [f"| `{each}` | {each.text} |" for each in SkipReason]
    for changed in (rows[:4] + rows[5:], [*rows[:4], rows[4], *rows[4:]]):
        assert doc_tables.filled_in("\n".join(changed)) == page.rstrip("\n")
        assert "\n".join(changed) != page.rstrip("\n")


def test_every_option_that_opens_the_service_is_documented() -> None:
    """docs/security.md names each option by which it can be made less safe, or safer."""
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    text = (ROOT / "docs/security.md").read_text()
    served = parser.parse_args(["serve", "--root", "x"])
    for name in vars(served):
        if name.startswith(("allow", "auth", "tls")):
            assert f"`--{name.replace('_', '-')}`" in text


def test_links_of_the_docs_lead_somewhere() -> None:
    """Every relative link in docs/ names a file of the repository."""
    for page in (ROOT / "docs").glob("*.md"):
        for target in _links(page.read_text()):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_root_pages_hold_everywhere(name: str) -> None:
    """On PyPI and on the site there are no files beside these pages, so each link is absolute."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    repository = urls["Repository"]
    for target in _links((ROOT / name).read_text()):
        assert target.startswith("https://"), target
        if repository in target or "raw.githubusercontent" in target:
            base = rf"(?:{repository}/blob|{_RAW})/main/(.+)"
            named = re.fullmatch(base, target)
            if named is None:
                assert target == f"{repository}/security/advisories/new"
            else:
                assert (ROOT / named[1]).exists(), target


def _links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page)


def test_the_prose_is_plain() -> None:
    """No docstring, comment, message or page has a word that `support.prose` refuses."""
    assert [str(finding) for path in prose.files() for finding in prose.check(path)] == []


def test_the_lint_of_prose_finds_what_it_refuses(tmp_path: Path) -> None:
    """In docstrings, comments, messages and pages, across lines; not in code or questions."""
    module, page = tmp_path / "module.py", tmp_path / "page.md"
    module.write_text(
        '"""Who asks, waits."""\n\nlest = 1  # an anew\n# row of entries has\n# come\n'
        'raise ValueError(f"{lest} for who asks")\n'
    )
    page.write_text("What is held?\n\n```sh\nanew\n```\n\n| What is held | `anew` |\n")
    found = [(each.line, each.text) for path in (module, page) for each in prose.check(path)]
    assert found == [
        *[(1, "Who"), (6, "for who"), (3, "anew"), (4, "has come")],
        *[(7, "What is held"), (7, "What is")],
    ]


def test_every_page_is_on_the_site() -> None:
    """Each page of docs/ stands in one table of contents of docs/index.md."""
    tables = re.findall(
        r"^```\{toctree\}\n(.*?)^```$", _INDEX.read_text(), re.DOTALL | re.MULTILINE
    )
    listed = [line for table in tables for line in table.splitlines() if line[:1].isalpha()]
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {_INDEX.stem}
    assert sorted(listed) == sorted(pages)


def test_the_readme_is_short() -> None:
    """Ninety lines, five claims, one picture."""
    claims = README.partition("## Five claims")[2].partition("\n## ")[0]
    assert len(README.splitlines()) <= MAX_README_LINES
    assert claims.count("\n- **") == CLAIMS
    assert README.count("![") == 1


@pytest.mark.parametrize(("page", "most"), [("architecture", 120), ("performance", 200)])
def test_a_page_is_short(page: str, most: int) -> None:
    """Pages that every change adds to keep to a length that one sitting takes."""
    assert len((ROOT / f"docs/{page}.md").read_text().splitlines()) <= most


def test_the_rooms_have_ten_layers() -> None:
    """The order of imports is that of the rooms, and takes ten layers and two prohibitions."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers, *prohibitions = config["contracts"]
    assert len(layers["layers"]) <= MAX_LAYERS
    assert [each["type"] for each in prohibitions] == ["forbidden", "forbidden"]


def test_every_module_is_in_the_architecture() -> None:
    """docs/architecture.md names each module of the core."""
    architecture = (ROOT / "docs/architecture.md").read_text()
    for path in (ROOT / "bbcache").iterdir():
        if not path.name.startswith(("_", "py.typed")):
            assert re.search(rf"\b{path.stem}\b", architecture), path.name


def test_every_test_that_is_named_exists() -> None:
    """docs/ promises nothing by a test that is not there."""
    text = (ROOT / "docs/reliability.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > MANY
    assert {name for name in named if f"def {name}(" not in source} == set()
    for page in (ROOT / "docs").glob("*.md"):
        for path in re.findall(r"`(tests/[\w/.]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_proof_of_a_rule_exists() -> None:
    """The table of rules in docs/reliability.md names tests by file and function."""
    text = (ROOT / "docs/reliability.md").read_text()
    _, _, table = text.partition("| rule | verified by |\n| --- | --- |\n")
    rows = table.partition("\n\n")[0].splitlines()
    assert rows
    for row in rows:
        proofs = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row)
        assert len(proofs) == row.count("::") > 0, row
        for path, name in proofs:
            source = (ROOT / "tests" / path).read_text()
            assert f"def {name}(" in source, f"{path}::{name}"


def test_the_figures_of_eviction_meet_their_goals() -> None:
    """Of each fleet at least 0.95 of the oracle, of the mixed one 0.9 of Belady's policy."""
    text = (ROOT / "docs/eviction.md").read_text()
    lines = text.partition("| fleet | ")[2].partition("\n\n")[0].splitlines()
    names = [each.strip() for each in lines[0].split("|")]
    rows = {}
    for line in lines[2:]:
        fleet, *cells = [each.strip(" *") for each in line.strip("|").split("|")]
        rows[fleet] = dict(zip(names, cells, strict=False))
    assert len(rows) == 7
    for row in rows.values():
        oracle, product = float(row["oracle"]), row["the product's code, one seed"].split()[0]
        assert float(row["rule"]) / oracle >= 0.95
        assert float(product) / oracle >= 0.95
    assert float(rows["mixed"]["rule"]) / float(rows["mixed"]["Belady"]) >= 0.9
