"""docs/tools.md says what the tools do, as far as `make test` has installed them."""

from pathlib import Path

import pytest

from survey import page
from survey.lab import lab
from survey.tools import TOOLS
from survey.verdicts import EXACT, REFUSED, WRITES_ALL

TEXT = (Path(__file__).parents[2] / "docs/tools.md").read_text()


@pytest.fixture(scope="module")
def surveyed(fuse):
    with lab() as mounted:
        yield mounted


@pytest.mark.parametrize(
    ("part", "tool"),
    [(part, tool) for part, tools in TOOLS.items() for tool in tools if tool.tested],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_a_tool_does_what_the_page_says(surveyed, require, part, tool):
    """If not: make generated.

    Another version of a tool, or another kernel, may read otherwise, to the same verdict.
    """
    require(page.version(tool.package) is not None, f"the package {tool.package}")
    said = page.rows(TEXT, part)[tool.name]
    seen = page.row(part, tool, surveyed.run(part, tool))
    if (seen[-1], page.kernel()) == (said[-1], page.measured_on(TEXT)):
        assert seen == said
    assert seen[-2] == said[-2]


@pytest.mark.parametrize("part", TOOLS)
def test_the_page_has_a_row_for_each_tool(part):
    rows = page.rows(TEXT, part)
    assert list(rows) == [tool.name for tool in TOOLS[part]]
    assert all(len(row) == len(page.HEADS[part]) for row in rows.values())


def test_every_verdict_is_explained():
    given = {row[-2] for part in TOOLS for row in page.rows(TEXT, part).values()}
    assert given >= {EXACT, REFUSED, WRITES_ALL}
    for verdict in given:
        assert f"\n| {verdict} | " in TEXT


def test_the_survey_sees_what_is_not_in_the_page(surveyed):
    """A planted mistake: the tool does another thing than its row says."""
    (other,) = (tool for tool in TOOLS["show"] if tool.name == "`cat bar0 > copy`")
    (tool,) = (tool for tool in TOOLS["show"] if tool.name == "`xxd -s 8 -l 4 bar0`")
    assert surveyed.run("show", other).verdict != page.rows(TEXT, "show")[tool.name][-2]
