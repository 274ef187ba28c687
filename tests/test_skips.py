"""No test is left out where it counts: whoever lacks something says so through tests/servers.py, which fails on CI.

Source: pytest's reference, "pytest.skip", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.skipif", "xfail".
"""

import ast

import pytest
from servers import ROOT

SKIPPING = {"skip", "skipif", "importorskip", "xfail", "skipTest", "SkipTest", "skipIf", "skipUnless"}
MAY_SKIP = "tests/servers.py"
OTHERS_SKIP = "check/conform/pytest_plugin.py"  # in their tests, what their server does not offer

SKIPS = [  # as pytest and unittest have it
    "pytest.skip('no time')",
    "skip('no time')",
    "pytest.importorskip('nbd')",
    "raise unittest.SkipTest",
    "@pytest.mark.skip\ndef test(): ...",
    "@pytest.mark.skipif(True, reason='')\ndef test(): ...",
    "pytestmark = pytest.mark.xfail",
    "pytest.param(1, marks=[pytest.mark.skip(reason='')])",
    "from pytest import skip as leave_out",
    "leave_out = pytest.skip",
]
NOT_SKIPS = [
    "pytest.fail('skip')",
    "reader.skipped(3)",
    "with pytest.raises(pytest.skip.Exception): ...",
    "# pytest.skip('no time')",
]


def skips(source):
    """The lines on which something is skipped; `skip.Exception`, which only names what skipping raises, is not that."""
    tree = ast.parse(source)
    harmless = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "Exception"}
    return sorted({node.lineno for node in ast.walk(tree) if node not in harmless and name_of(node) in SKIPPING})


def name_of(node):
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.alias(name=name):
            return name.rpartition(".")[2]
    return None


@pytest.mark.parametrize("source", SKIPS)
def test_every_way_to_skip_is_seen(source):
    assert skips(source)


@pytest.mark.parametrize("source", NOT_SKIPS)
def test_what_skips_nothing_is_not_suspected(source):
    assert not skips(source)


def test_tests_skip_in_one_place_only_which_fails_on_ci():
    found = {
        str(path.relative_to(ROOT)): lines
        for folder in ("tests", "check")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (lines := skips(path.read_text(encoding="utf-8")))
    }
    assert found.keys() == {MAY_SKIP, OTHERS_SKIP}, found
