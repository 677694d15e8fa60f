"""What was measured, as JSON and as tables. All pure."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from bench.stats import Summary, ratio

# The daemons; a case with others has a table of its own.
COLUMNS: Final = ("C", "barfs", "stock")

Json = dict[str, Any]
Rows = list[list[str]]


def case_json(about: Json, summaries: Mapping[str, Summary]) -> Json:
    """One case for the JSON; `about` has its section, name, unit, base and target."""
    first = summaries[about["base"]].median if about["base"] in summaries else 0
    contenders = {
        label: {**dataclasses.asdict(summary), "ratio": ratio(summary.median, first)}
        for label, summary in summaries.items()
    }
    return {**about, "contenders": contenders}


def reached(case: Json) -> tuple[float, bool] | None:
    """The ratio or value that a case with a target has reached, and whether that is enough."""
    target = case["target"]
    if target is None or target["contender"] not in case["contenders"]:
        return None
    value = case["contenders"][target["contender"]]["median"]
    if target["base"] is not None:
        value /= case["contenders"][target["base"]]["median"]
    return value, value <= target["limit"]


def format_value(value: float, unit: str) -> str:
    """With its unit, three digits that count."""
    if unit == "%":
        return f"{value:.2f} %"
    if unit == "bytes":
        return f"{value / (1 << 20):.1f} MiB"
    for name, scale in (("ns", 1), ("µs", 1e3), ("ms", 1e6)):
        if value < 999.5 * scale:
            return f"{value / scale:.3g} {name}"
    return f"{value / 1e9:.3g} s" if value < 999.5e9 else f"{value / 3600e9:.1f} h"


def format_ratio(value: float | None) -> str:
    """With an x; nothing where there is none."""
    if value is None:
        return ""
    if value >= 99.5 or value < 0.095:
        return f"{value:.0f}x" if value >= 99.5 else f"{value:.1g}x"
    return f"{value:.{2 if value < 9.95 else 1}f}x"


def _target(case: Json) -> str:
    target, result = case["target"], reached(case)
    if target is None:
        return ""
    limit = target["limit"]
    if target["base"] is None:
        words = "0 %" if case["unit"] == "%" else format_value(limit, case["unit"])
    else:
        words = f"{limit:g}x"
    return words if result is None else f"{words} {'reached' if result[1] else 'missed'}"


def _is_compared(case: Json) -> bool:
    return set(case["contenders"]) <= set(COLUMNS)


def _cell(case: Json, label: str) -> str:
    contender = case["contenders"].get(label)
    if contender is None:
        return ""
    mark = "~" if contender["partial"] else ""
    return mark + format_value(contender["median"], case["unit"])


def _cpu(case: Json, label: str) -> str:
    cpu = case["contenders"].get(label, {}).get("cpu")
    return "" if cpu is None else format_value(cpu, "ns")


def _ratio(case: Json, label: str) -> str:
    if case["unit"] == "%":
        return ""  # of next to nothing
    return format_ratio(case["contenders"].get(label, {}).get("ratio"))


def _compared(cases: Sequence[Json]) -> Rows:
    """A row for each case, with the daemons beside each other."""
    header = ["", *COLUMNS, "barfs / C", "target", "stock / C"]
    has_cpu = any(_cpu(case, label) for case in cases for label in COLUMNS)
    rows = [header + [f"CPU of {label}" for label in COLUMNS if has_cpu]]
    for case in cases:
        row = [case["name"], *(_cell(case, label) for label in COLUMNS)]
        row += [_ratio(case, "barfs"), _target(case), _ratio(case, "stock")]
        rows.append(row + [_cpu(case, label) for label in COLUMNS if has_cpu])
    return rows


def _listed(case: Json) -> Rows:
    """A row for each contender."""
    rows = [["", "time", "ratio", "target"]]
    for label in case["contenders"]:
        wanted = case["target"] is not None and case["target"]["contender"] == label
        row = [label, _cell(case, label), _ratio(case, label), _target(case) if wanted else ""]
        rows.append(row)
    return rows if case["target"] else [row[:-1] for row in rows]


def tables(cases: Iterable[Json]) -> Iterator[tuple[str, Rows]]:
    """Headings and rows, the first row the header; cases of a section share a table."""
    sections: dict[str, list[Json]] = {}
    for case in cases:
        heading = case["section"] if _is_compared(case) else f"{case['section']}, {case['name']}"
        sections.setdefault(heading, []).append(case)
    for heading, members in sections.items():
        yield heading, _compared(members) if _is_compared(members[0]) else _listed(members[0])


def as_text(rows: Rows) -> str:
    """For a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def as_markdown(rows: Rows) -> str:
    """For docs/performance.md."""
    header, *body = rows
    rule = ["---", *("--:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])


def describe(run: Json) -> str:
    """What machine it was, and when: a paragraph."""
    system = run["system"]
    load = " and ".join(f"{load:.1f}" for load in system["load"])
    return (
        f"Measured {run['time']} at commit {system['commit']} on {system['cpus']} CPUs "
        f"({system['model']}{', a virtual machine' if system['virtual'] else ''}), Linux "
        f"{system['kernel']}, libfuse {system['libfuse']}, Python {system['python']}, pyfuse3 "
        f"{system['pyfuse3']}, trio {system['trio']}; {run['settings']['rounds']} rounds of "
        f"{run['settings']['slice_ms']} ms; load {load} before and after."
    )


def markdown(run: Json) -> str:
    """All tables for docs/performance.md."""
    parts = [describe(run)]
    for heading, rows in tables(run["cases"]):
        parts.append(f"### {heading[0].upper()}{heading[1:]}\n\n{as_markdown(rows)}")
    if run["missing"]:
        parts.append(f"Not measured, as it was not installed: {', '.join(run['missing'])}.")
    return "\n\n".join(parts) + "\n"
