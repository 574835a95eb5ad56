"""What integrators suffer from elsewhere, and every fault that a gateway must bear: each has its named test.

`docs/pain-points.md` is the table for people. Here it is held against the tests that there are: a pain without
a test, a test that was renamed, and a row that names none all fail.
"""

import ast
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "pain-points.md"
PAINS = range(1, 24)
FAULTS = (
    "power cycle",
    "half-open connection",
    "connection refused for an hour",
    "duplicate unit",
    "NaN",
    "stuck value",
    "wrong clock",
    "certificate expired or revoked",
    "broker down for a day",
    "disk full",
    "reload with clients connected",
    "nobody without the role",
    "broken frames",
)


@lru_cache(maxsize=1)
def test_names() -> Counter[str]:
    """All tests of the project, without running or importing one."""
    found: Counter[str] = Counter()
    for path in TESTS.rglob("test_*.py"):
        if "node_modules" not in path.parts:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            functions = (node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
            found.update(node.name for node in functions if node.name.startswith("test_"))
    return found


test_names.__test__ = False  # pytest would take it for one


def rows() -> dict[str, list[str]]:
    """First cell of each row of the page -> the tests that it names."""
    cells = [
        line.split("|")[1:-1]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    return {row[0].strip(): re.findall(r"`(test_\w+)`", row[-1]) for row in cells}


@pytest.mark.parametrize("number", PAINS)
def test_each_pain_has_a_test_named_after_it(number):
    mark = f"test_p{number:02d}_"
    named = [name for name in test_names() if name.startswith(mark)]
    assert named, f"no test is named {mark}..."
    assert any(name.startswith(mark) for name in rows()[f"P{number}"]), f"the page names none of {named}"


def test_no_test_is_named_after_a_pain_that_there_is_not():
    marks = {int(found[1]) for name in test_names() if (found := re.match(r"test_p(\d\d)_", name))}
    assert marks <= set(PAINS)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_row_and_the_row_its_tests(fault):
    assert rows()[fault], f"the row of {fault!r} names no test"


def test_whatever_the_page_names_is_there_once():
    named = {name for names in rows().values() for name in names}
    assert {name for name in named if test_names()[name] != 1} == set()
