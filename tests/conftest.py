"""What all tiers share."""

import os
import re
from pathlib import Path

import pytest

# What compares for several tests, and should say what it has compared.
pytest.register_assert_rewrite("walks")


@pytest.fixture(scope="session")
def require():
    """Skip unless a condition holds; with BARFS_REQUIRE=1 fail instead, so no skip goes unseen."""

    def check(condition, reason):
        if condition:
            return
        if os.environ.get("BARFS_REQUIRE") == "1":
            pytest.fail(f"required: {reason}")
        pytest.skip(reason)

    return check


@pytest.fixture(scope="session")
def tour_blocks():
    """The shell blocks of docs/tour.md."""
    text = (Path(__file__).parents[1] / "docs/tour.md").read_text()
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
