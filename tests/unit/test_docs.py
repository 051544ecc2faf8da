"""Words are tested: commands exist, links lead somewhere, generated pages and tables are true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.sources import ROOT
from tools import gen_errors

_PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
_SOURCES = sorted([*ROOT.glob("src/pyrep/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
_MAX_MODULE_LINES = 500
_MAX_FUNCTION_LINES = 50
_MAX_NESTING = 3

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_BLOCKS = ast.If | ast.For | ast.While | ast.Try | ast.Match  # a with-block decides nothing


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchor(heading: str) -> str:
    """Return the anchor that a heading gets on common forges."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text())
    return {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", _PAGES, ids=_relative)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def test_make_commands_in_the_docs_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    used = {
        (_relative(page), target)
        for page in _PAGES
        for target in re.findall(
            r"(?:`|^ *\$? ?)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE
        )
    }
    assert {"run", "test"} <= {target for page, target in used if page == "README.md"}
    assert [use for use in sorted(used) if use[1] not in targets] == []


def test_every_target_is_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    described = set(re.findall(r"^([a-z0-9-]+):.*## \S", makefile, re.MULTILINE))
    assert described == set(phony[1].split())


def test_ci_script_is_a_program_of_the_plain_shell() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/sh\n")
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_docs_name_each_other() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [p.name for p in ROOT.glob("docs/*.md") if f"docs/{p.name}" not in readme] == []


def test_errors_page_is_generated() -> None:
    assert (ROOT / "docs" / "errors.md").read_text() == gen_errors.render()


def test_every_license_and_version_agrees() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    package = (ROOT / "src" / "pyrep" / "__init__.py").read_text()
    assert f'__version__ = "{project["version"]}"' in package
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()


def test_build_group_covers_what_the_build_requires() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = set(pyproject["build-system"]["requires"])
    assert required <= set(pyproject["dependency-groups"]["build"])


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _nesting(node: ast.AST) -> int:
    """Return how deep blocks stand inside each other; an ``elif`` is no deeper than its ``if``."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        chained = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        step = int(isinstance(child, _BLOCKS) and not chained)
        deepest = max(deepest, step + _nesting(child))
    return deepest


@pytest.mark.parametrize("source", _SOURCES, ids=_relative)
def test_modules_and_functions_are_small(source: Path) -> None:
    text = source.read_text()
    assert text.count("\n") <= _MAX_MODULE_LINES
    functions = list(_functions(ast.parse(text)))
    sizes = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert {name: size for name, size in sizes.items() if size > _MAX_FUNCTION_LINES} == {}
    depths = {f.name: _nesting(f) for f in functions}
    assert {name: depth for name, depth in depths.items() if depth > _MAX_NESTING} == {}


@pytest.mark.parametrize("source", _SOURCES, ids=_relative)
def test_public_things_say_what_they_do(source: Path) -> None:
    """Each module has a docstring; that of a public function or class begins with a sentence."""
    tree = ast.parse(source.read_text())
    assert ast.get_docstring(tree)
    documented = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    first = {n.name: (ast.get_docstring(n) or "").split("\n")[0] for n in documented}
    public = {name: line for name, line in first.items() if not name.startswith("_")}
    assert {name: line for name, line in public.items() if not line.endswith(".")} == {}


def test_nesting_is_counted() -> None:
    flat = ast.parse("if a:\n pass\nelif b:\n pass\nelif c:\n pass\nelif d:\n pass")
    deep = ast.parse(
        "for a in b:\n if c:\n  with d:\n   while e:\n    try:\n     f()\n    finally:\n     g()"
    )
    assert (_nesting(flat), _nesting(deep)) == (1, 4)


def test_links_are_told_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two` three\n```\n# not a heading\n```\n")
    assert _anchors(page) == {"one-two-three"}
    assert _LINK.findall("[a](b.md#c) ![image](d.png)") == ["b.md#c"]
