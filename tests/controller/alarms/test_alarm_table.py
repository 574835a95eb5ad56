"""The table: every key that the program can make has its entry, and the page is what the table says."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import controller
from controller.alarms.page import page
from controller.alarms.points import Level
from controller.alarms.table import SECTIONS, SHELVE_MAX_S, TABLE, AlarmSettings, Priority
from controller.core.watch import SITE_MISSING

SETTINGS = AlarmSettings()
SOURCES = Path(controller.__file__).parent
PAGE = SOURCES.parent / "docs" / "alarms.md"
TELLS_PAIRS = "Iterator[tuple[str, str]]"  # what a function that yields conditions returns
OF_THE_GATEWAY = {"device …", "write …", "flag …", *(f"{level} …" for level in Level)}
OF_THE_BOOK = {"alarms …", "…"}


def test_there_is_one_entry_for_each_pattern():
    assert [pattern for pattern, count in Counter(one.pattern for one in TABLE).items() if count > 1] == []


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("broker", "broker"),
        ("broker dsx", "broker …"),
        ("meter", "meter"),
        ("meter implausible", "meter implausible"),
        ("site lost grid operator north", "site lost …"),
        ("pdu r1 a", "pdu …"),
        ("pdu", "…"),
        ("high-high devices/x/y", "high-high …"),
        ("high devices/x/y", "high …"),
        ("agent others", "agent …"),
        ("", "…"),
        (" ", "…"),
        ("never heard of", "…"),
        ("…", "…"),
    ],
)
def test_a_key_finds_its_entry_by_its_longest_beginning(key, pattern):
    assert SETTINGS.entry(key).pattern == pattern


def test_a_lost_broker_says_what_it_costs_and_what_is_left_to_do():
    """It is the road to every GPU: who reads the row must not take it for one device among others."""
    entry = SETTINGS.entry("broker")
    for cost in (
        "after their lease",
        "`fallback_w`",
        "work lost",
        "No curtailment, shed or frequency response",
    ):
        assert cost in entry.by_itself, cost
    for left in ("systemctl status mosquitto", "by the agreed ramp", "shed by hand"):
        assert left in entry.response, left


def shape(node):
    """`f"signal {source}"` and `"cooling"` as patterns of the table; None: no key of an alarm."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        return f"{node.values[0].value.strip()} …"
    return None


def pairs_of(function):
    """First halves of the pairs that a function yields, or lists to go through as (key, text)."""
    if ast.unparse(function.returns or ast.Constant(None)) == TELLS_PAIRS:
        for node in ast.walk(function):
            if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
                yield node.value.elts[0]
            if isinstance(node, ast.YieldFrom) and isinstance(node.value, ast.GeneratorExp):
                assert isinstance(node.value.elt, ast.Tuple), ast.unparse(node)
                yield node.value.elt.elts[0]
    loops = (node for node in ast.walk(function) if isinstance(node, ast.comprehension | ast.For))
    for loop in loops:
        if ast.unparse(loop.target) in {"(key, text)", "(key, fault)"} and isinstance(loop.iter, ast.Tuple):
            yield from (one.elts[0] for one in loop.iter.elts if isinstance(one, ast.Tuple))


def conditions_of(module):
    """Kinds of the law's conditions; with a name where one is given."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Condition":
            named = len(node.args) > 3 or any(keyword.arg == "name" for keyword in node.keywords)
            if (kind := shape(node.args[0])) is not None:
                yield f"{kind} …" if named else kind
    for kind, _ in SITE_MISSING.values():
        yield f"{kind} …"


def alarms_of(module):
    """First halves of `Alarm(key, text)`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Alarm":
            yield shape(node.args[0])


def made_by_the_program():
    """Every alarm key that stands in the sources, as patterns."""
    found = set(conditions_of(ast.parse((SOURCES / "core" / "watch.py").read_text())))
    found |= set(alarms_of(ast.parse((SOURCES / "core" / "frequency.py").read_text()))) - {None}
    for path in SOURCES.rglob("*.py"):
        if "views" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found |= {shape(one) for one in pairs_of(node)} - {None}
    return found


def test_the_search_through_the_sources_finds_what_is_known_to_be_there():
    found = made_by_the_program()
    assert {
        "shortfall",
        "gpu …",
        "site lost …",
        "vtn …",
        "flood",
        "broker",
        "broker …",
        "alarm file",
    } <= found


def test_every_alarm_that_the_program_can_make_has_its_entry():
    made = made_by_the_program()
    known = {one.pattern for one in TABLE}
    assert made - known == set(), "give it an entry in controller/alarms/table.py"


def test_no_entry_is_left_of_an_alarm_that_nobody_makes():
    assert {one.pattern for one in TABLE} - made_by_the_program() <= OF_THE_GATEWAY | OF_THE_BOOK


def test_every_alarm_tells_the_operator_what_to_do():
    for one in TABLE:
        assert len(one.response) >= len("free the disk"), one.pattern
        assert one.meaning, one.pattern
        assert one.by_itself, one.pattern


def test_few_alarms_are_critical_and_none_of_those_can_be_hidden():
    counts = Counter(one.priority for one in TABLE)
    assert counts[Priority.CRITICAL] <= len(TABLE) / 8
    assert counts[Priority.CRITICAL] + counts[Priority.HIGH] < counts[Priority.MEDIUM] + counts[Priority.LOW]
    assert not any(one.suppressible for one in TABLE if one.priority is Priority.CRITICAL)


def test_nothing_can_be_shelved_for_longer_than_a_shift():
    assert SHELVE_MAX_S <= 12 * 3600.0


def test_the_page_is_written_from_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m controller.alarms > docs/alarms.md"


def test_the_page_names_every_alarm_and_every_section():
    told = page()
    for title, entries in SECTIONS.items():
        assert f"## {title}\n" in told
        assert all(f"| `{one.pattern}` | {one.priority} |" in told for one in entries)
    assert not any("|" in text for one in TABLE for text in (one.meaning, one.by_itself, one.response))
