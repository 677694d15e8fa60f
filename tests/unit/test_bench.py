"""The bench's arithmetic, tables and picture; tests/mounted runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machines import functions_of

from barfs.names import PciAddress
from bench import machines, page, report, stats
from bench.cases import Case, Target
from bench.stats import Sample

ROOT = Path(__file__).parents[2]
MARKS = page.marks("tables")


def case(values, *, section="small requests", name="4-byte read", **more):
    made = Case(section, name, dict.fromkeys(values), **more)
    summaries = {label: stats.summarise(samples) for label, samples in values.items()}
    # As it comes out of the file.
    return json.loads(json.dumps(report.case_json(made.about(), summaries)))


def samples(*values, cpu=None):
    return [Sample(value, cpu) for value in values]


def test_a_summary_does_not_heed_one_that_is_far_off():
    summary = stats.summarise(samples(4, 1, 2, 3, 1000))
    assert (summary.median, summary.min, summary.q1, summary.q3) == (3, 1, 2, 4)
    assert summary.samples == [4, 1, 2, 3, 1000]
    assert summary.cpu is None
    assert not summary.partial


def test_a_summary_of_one():
    summary = stats.summarise([Sample(7, 5, partial=True)])
    assert (summary.median, summary.min, summary.q1, summary.q3, summary.cpu) == (7, 7, 7, 7, 5)
    assert summary.partial


def test_each_comes_first_in_its_turn():
    orders = [stats.rotated(["A", "B", "C"], turn) for turn in range(4)]
    assert orders == [["A", "B", "C"], ["B", "C", "A"], ["C", "A", "B"], ["A", "B", "C"]]


def test_ratios_are_of_medians():
    made = case({"C": samples(10, 11, 90), "barfs": samples(22, 1, 22), "stock": samples(55)})
    ratios = {label: one["ratio"] for label, one in made["contenders"].items()}
    assert ratios == {"C": 1, "barfs": 2, "stock": 5}


def test_a_ratio_to_nothing_is_none():
    assert stats.ratio(5, 0) is None
    assert report.format_ratio(None) == ""


@pytest.mark.parametrize(
    ("target", "barfs", "outcome"),
    [
        (Target(2.0), 20, (2.0, True)),
        (Target(2.0), 21, (2.1, False)),
        (Target(1e9, base=None), 1.5e9, (1.5e9, False)),
        (Target(1e9, base=None), 1e9, (1e9, True)),
        (Target(2.0, "u32 view", "raw"), 20, None),
        (None, 20, None),
    ],
)
def test_targets(target, barfs, outcome):
    made = case({"C": samples(10), "barfs": samples(barfs)}, target=target)
    assert report.reached(made) == outcome


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        *((0.43, "ns", "0.43 ns"), (999.4, "ns", "999 ns"), (999.6, "ns", "1 µs")),
        *((12345, "ns", "12.3 µs"), (4.56e6, "ns", "4.56 ms"), (1.02e9, "ns", "1.02 s")),
        *((7.2e12, "ns", "2.0 h"), (0.034, "%", "0.03 %"), (3 << 19, "bytes", "1.5 MiB")),
    ],
)
def test_values_have_three_digits_and_a_unit(value, unit, text):
    assert report.format_value(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00234, "0.002x"), (0.5, "0.50x"), (1, "1.00x"), (12.34, "12.3x"), (1234.5, "1234x")],
)
def test_ratios_have_an_x(value, text):
    assert report.format_ratio(value) == text


def test_a_table_of_daemons_and_one_of_others():
    cases = [
        case(
            {"C": samples(1000, cpu=400), "barfs": samples(2500), "stock": samples(9000)},
            target=Target(2.0),
        ),
        case({"C": samples(10), "barfs": samples(10)}, name="without stock"),
        case(
            {"raw": samples(100), "u32 view": samples(140)},
            section="views",
            base="raw",
            target=Target(1.5, "u32 view", "raw"),
        ),
    ]
    (first, compared), (second, listed) = report.tables(cases)
    assert (first, second) == ("small requests", "views, 4-byte read")
    assert compared[1:] == [
        *[
            [
                "4-byte read",
                "1 µs",
                "2.5 µs",
                "9 µs",
                "2.50x",
                "2x missed",
                "9.00x",
                "400 ns",
                "",
                "",
            ]
        ],
        ["without stock", "10 ns", "10 ns", "", "1.00x", "", "", "", "", ""],
    ]
    assert listed[1:] == [
        ["raw", "100 ns", "1.00x", ""],
        ["u32 view", "140 ns", "1.40x", "1.5x reached"],
    ]
    assert report.as_text(listed).splitlines()[-1] == "u32 view  140 ns  1.40x  1.5x reached"
    assert report.as_markdown(listed).splitlines()[1:3] == [
        "| --- | --: | --: | --: |",
        "| raw | 100 ns | 1.00x |  |",
    ]


def run_of(cases):
    about = {"commit": "abc", "cpus": 2, "model": "CPU", "virtual": True, "kernel": "6.1"}
    versions = {"libfuse": "3.14", "python": "3.11", "pyfuse3": "3.5", "trio": "0.3"}
    return {
        "time": "2026-01-02",
        "system": {**about, **versions, "load": [0.04, 1.26]},
        "settings": {"rounds": 3, "slice_ms": 20, "quick": True},
        "missing": ["memtool"],
        "cases": cases,
    }


@pytest.fixture
def drawn(tmp_path, require):
    """A function that draws a run into a directory with a page."""
    require(
        subprocess.run([sys.executable, "-c", "import matplotlib"], check=False).returncode == 0,
        "matplotlib",
    )

    def draw(text, cases):
        (tmp_path / "performance.md").write_text(text)
        (tmp_path / "run.json").write_text(json.dumps(run_of(cases)))
        return subprocess.run(
            [sys.executable, ROOT / "bench/plot", tmp_path / "run.json", tmp_path],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
        )

    return draw


def test_the_page_and_its_picture(drawn, tmp_path):
    name = "4-byte read, registers, at random, one CPU"
    values = {"C": samples(1000), "barfs": samples(2500), "stock": samples(9000)}
    text = f"before\n{MARKS[0]}old\n{MARKS[1]}after\n"
    pictures = []
    for _ in range(2):
        done = drawn(text, [case(values, name=name, target=Target(2.0))])
        assert (done.returncode, done.stderr) == (0, "")
        text = (tmp_path / "performance.md").read_text()
        pictures.append((tmp_path / "performance.svg").read_bytes())
    assert text.startswith(f"before\n{MARKS[0]}")
    assert text.endswith(f"{MARKS[1]}after\n")
    assert text.count(f"| {name} | 1 µs | 2.5 µs | 9 µs | 2.50x | 2x missed | 9.00x |") == 1
    assert "old" not in text
    assert "load 0.0 and 1.3" in text
    assert "not installed: memtool" in text
    assert name.encode() in pictures[0]
    assert pictures[0] == pictures[1]


def test_a_page_without_a_place_for_tables_is_left_alone(drawn, tmp_path):
    done = drawn("a page\n", [])
    assert done.returncode != 0
    assert "no place for tables" in done.stderr
    assert (tmp_path / "performance.md").read_text() == "a page\n"


@pytest.mark.parametrize("part", ["tables", "profile"])
def test_our_page_has_a_place_for_each_part(part):
    text = (ROOT / "docs/performance.md").read_text()
    assert [text.count(mark) for mark in page.marks(part)] == [1, 1]


@pytest.mark.parametrize("functions", [2, 16, 300])
def test_a_machine_of_so_many_functions(tmp_path, functions):
    machine = machines.build(tmp_path, functions)
    bus = functions_of(machine.sysfs)
    addresses = bus.addresses()
    assert len(addresses) == functions
    assert addresses[0] == machines.SUBJECT
    assert addresses[-1] == machines.address_of_last(functions)
    assert bus.bars(machines.SUBJECT)[machines.MEMORY].prefetchable
    assert not bus.bars(machines.SUBJECT)[machines.REGISTERS].prefetchable
    assert bus.bars(addresses[-1])[0].size == 4096
    same = [address for address in addresses if bus.id(address) == bus.id(addresses[-1])]
    assert machines.link_to_last(functions) == f"{bus.id(same[0])}" + (
        f".{len(same) - 1}" if len(same) > 1 else ""
    )
    assert isinstance(addresses[-1], PciAddress)
