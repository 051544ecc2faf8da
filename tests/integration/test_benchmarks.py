"""`make bench-all` gives one page with every number to reach, also where a benchmark fails."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from fixtures.effort import wait_until
from fixtures.sources import ROOT

_BENCHMARKS = ROOT / "benchmarks"
_RUN_ALL = [sys.executable, str(_BENCHMARKS / "run_all.py")]
_MODULES = ("document", "machine", "plots", "rows", "run_all")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Import the modules of the runner, which are forgotten after the test."""
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    for name in _MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name: __import__(name) for name in _MODULES}
    for name in _MODULES:
        monkeypatch.setitem(sys.modules, name, found[name])
    return found


def ids(bench: dict[str, ModuleType], name: str = "") -> set[str]:
    """Return the keys of the numbers to reach, of one benchmark or of all."""
    measures = bench["rows"].MEASURES
    return {measure.id for measure in measures if name in ("", measure.bench)}


@pytest.mark.slow
@pytest.mark.interop
def test_every_number_to_reach_is_on_the_page(tmp_path: Path, bench: dict[str, ModuleType]) -> None:
    """All benchmarks run, tiny; what they measure means nothing, that they measure does."""
    done = subprocess.run(
        [*_RUN_ALL, "--quick", "--output", str(tmp_path / "docs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    results = json.loads((tmp_path / "docs" / "benchmarks" / "results.json").read_text())
    failed = [row for row in results["rows"] if row["verdict"] == "failed"]
    assert failed == [], done.stderr
    assert {row["id"] for row in results["rows"] if row["tool"] == "pyrep"} >= ids(bench)
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    for measure in bench["rows"].MEASURES:
        assert f"| {measure.what}" in page
        assert measure.what in done.stdout
    charts = re.findall(r"\]\((benchmarks/\w+\.svg)\)", page)
    assert len(charts) >= 5
    for chart in charts:
        ElementTree.parse(tmp_path / "docs" / chart)
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {"benchmarks", "benchmarks.md"}
    for text in (page, json.dumps(results)):
        assert str(ROOT) not in text
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_a_run_that_is_interrupted_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text("of the run before")
    process = subprocess.Popen(
        [*_RUN_ALL, "--quick", "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "== core\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.endswith("interrupted: nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["benchmarks.md"]
    assert (tmp_path / "benchmarks.md").read_text() == "of the run before"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('wrong result: pages differ')", "wrong result: pages differ"),
        ("import os; os._exit(3)", "exit 3: it said nothing"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import time; time.sleep(600)", "it took longer than"),
        ("import sys; open(sys.argv[2], 'w').write('{}')", "it left no rows"),
    ],
    ids=["wrong", "killed", "error", "endless", "empty"],
)
def test_a_benchmark_that_fails_is_a_failing_row(
    tmp_path: Path, bench: dict[str, ModuleType], program: str, reason: str
) -> None:
    """Each number that it would have measured has one, with the reason."""
    run_all = bench["run_all"]
    (tmp_path / "bench_broken.py").write_text(program)
    run_all.BENCHES["core"] = run_all.Bench(str(tmp_path / "bench_broken.py"), [], 1.5 / 60)
    rows, raw = run_all.run("core", quick=False, folder=tmp_path)
    assert raw == {}
    assert {row.id for row in rows} == ids(bench, "core")
    assert all(row.verdict == "failed" and reason in row.measured for row in rows), rows


def test_rows_before_a_benchmark_broke_off_count(
    tmp_path: Path, bench: dict[str, ModuleType]
) -> None:
    program = (
        "import sys, pathlib, rows\n"
        "report = rows.Report(pathlib.Path(sys.argv[2]), {'seed': 7})\n"
        "report.add(rows.Row('fast', '>= 1', '2', 'reached', 'crc'))\n"
        "sys.exit('the disk is full')\n"
    )
    (tmp_path / "bench_half.py").write_text(program)
    run_all = bench["run_all"]
    run_all.BENCHES["core"] = run_all.Bench(str(tmp_path / "bench_half.py"), [], 1)
    rows, raw = run_all.run("core", quick=False, folder=tmp_path)
    assert raw == {"seed": 7}
    verdicts = {row.id: (row.verdict, row.measured) for row in rows}
    assert verdicts.pop("crc") == ("reached", "2")
    assert set(verdicts) == ids(bench, "core") - {"crc"}
    assert set(verdicts.values()) == {("failed", "the disk is full")}


@pytest.mark.parametrize("name", ["core", "tools"])
def test_one_that_breaks_off_after_its_last_row_to_reach_fails(
    tmp_path: Path, bench: dict[str, ModuleType], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the benchmark that has no number to reach at all."""
    program = (
        "import sys, pathlib, rows\n"
        "report = rows.Report(pathlib.Path(sys.argv[2]))\n"
        f"for id in {sorted(ids(bench, name))!r}:\n"
        "    report.add(rows.Row(id, '', '1', 'reached', id))\n"
        "sys.exit('wrong result: the last of them')\n"
    )
    (tmp_path / "bench_late.py").write_text(program)
    run_all = bench["run_all"]
    run_all.BENCHES[name] = run_all.Bench(str(tmp_path / "bench_late.py"), [], 1)
    rows, _ = run_all.run(name, quick=False, folder=tmp_path)
    assert [row.verdict for row in rows].count("failed") == 1
    assert rows[-1].measured.endswith("wrong result: the last of them")
    assert f"FAILED   {name}: " in capsys.readouterr().out


def test_what_a_benchmark_started_ends_with_it(
    tmp_path: Path, bench: dict[str, ModuleType]
) -> None:
    program = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[2]).with_name('pid').write_text(str(child.pid))\n"
        "sys.exit('forgot its child')\n"
    )
    (tmp_path / "bench_careless.py").write_text(program)
    run_all = bench["run_all"]
    run_all.BENCHES["core"] = run_all.Bench(str(tmp_path / "bench_careless.py"), [], 1)
    run_all.run("core", quick=False, folder=tmp_path)
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")

    def gone() -> bool:
        # or dead, and not yet reaped by whoever adopted it
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"

    wait_until(gone, "the child has ended")


def test_cells_stay_cells_and_name_no_machine(tmp_path: Path, bench: dict[str, ModuleType]) -> None:
    row, document = bench["rows"].Row, bench["document"]
    why = f"a | b\n<script> {ROOT}/x {os.environ.get('TMPDIR', '/tmp')}/y on {socket.gethostname()}"
    result = document.Result([row("crc", "", why, "failed", "crc")], {}, {}, "make", "a day", 1.0)
    document.write(result, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| CRC-64/ISO")]
    assert line.count("|") == 6
    assert "a / b &lt;script> SOURCE/x TMP/y on HOST" in line


def test_litestream_stands_beside(bench: dict[str, ModuleType]) -> None:
    """Also where another benchmark than ours has its number; once where we have several."""
    row, table = bench["rows"].Row, bench["document"].table
    rows = [
        row("requests", "0", "0", "reached", "requests"),
        row("four idle", "", "14400 a day", "beside", "idle", "litestream"),
        row("first", "", "60 MB", "missed", "idle-1000"),
        row("again", "", "50 MB", "reached", "idle-1000"),
        row("theirs", "", "400 MB", "beside", "idle-1000", "litestream"),
    ]
    assert [(line[0], *line[2:]) for line in table(rows)] == [
        ("1,000 idle tenants: first", "60 MB", "400 MB", "missed"),
        ("1,000 idle tenants: again", "50 MB", "", "reached"),
        ("requests of idle tenants", "0", "14400 a day", "reached"),
    ]


def test_a_chart_is_true_to_its_numbers(bench: dict[str, ModuleType]) -> None:
    bars, chart = bench["plots"].Bars, bench["plots"].chart
    drawn = chart(
        "memory & more",
        [bars("of ten", "MB", [("pyrep", 50.0), ("litestream", 400.0)], 100.0), bars("x", "s", [])],
    )
    root = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    boxes = [r for r in root.iter(f"{space}rect") if r.get("width") != "11"]
    widths = {r.get("class"): float(r.get("width", "0")) for r in boxes}
    assert widths["litestream"] == pytest.approx(8 * widths["pyrep"], rel=0.01)
    target = list(root.iter(f"{space}line"))[-1]  # the first is in the legend
    left = float(boxes[0].get("x", "0"))
    assert float(target.get("x1", "0")) - left == pytest.approx(2 * widths["pyrep"], rel=0.01)
    assert "not measured" in [t.text for t in root.iter(f"{space}text")]
    assert root.get("aria-label") == "memory & more"
