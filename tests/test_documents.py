"""What the documents say of the code: that what they name exists, and that the protocol's page leaves nothing out.

Source: impl/nbd/constants.py, whose members have a row each in docs/protocol.md.
"""

import ast
import re
from enum import Enum

import pytest
from servers import ROOT

from impl.nbd import constants

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("bench", "check", "docs", "impl", "model", "tests", "tools")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")
PATH = re.compile(rf"({'|'.join(FOLDERS)})/[\w./*-]*|[\w-]+\.(py|md|sh|toml)")
TEST = re.compile(r"test_\w+")

# How the standard writes the members' names. An enum that is not here fails the tests that ask for its prefix.
PREFIXES = {
    constants.HandshakeFlag: "NBD_FLAG_",
    constants.ClientFlag: "NBD_FLAG_C_",
    constants.TransmissionFlag: "NBD_FLAG_",
    constants.Option: "NBD_OPT_",
    constants.OptionReply: "NBD_REP_",
    constants.Info: "NBD_INFO_",
    constants.Command: "NBD_CMD_",
    constants.CommandFlag: "NBD_CMD_FLAG_",
    constants.ReplyFlag: "NBD_REPLY_FLAG_",
    constants.ChunkType: "NBD_REPLY_TYPE_",
    constants.AllocationFlag: "NBD_STATE_",
    constants.ErrorValue: "NBD_",
}
ENUMS = [
    found for found in vars(constants).values() if isinstance(found, type) and found.__module__ == constants.__name__
]
MEMBERS = [member for enum in ENUMS if issubclass(enum, Enum) for member in enum]


def read(path):
    return path.read_text(encoding="utf-8")


# What is named exists.


def functions_of_tests():
    """The file of each test that there is, by the test's name."""
    return {
        node.name: path
        for path in (ROOT / "tests").glob("*.py")
        for node in ast.parse(read(path)).body
        if isinstance(node, ast.FunctionDef)
    }


TESTS = functions_of_tests()


def missing_names(text):
    """The files and tests in a document's code spans that there are not."""
    return [
        word
        for span in CODE.findall(text)
        for word in span.split()
        if (PATH.fullmatch(word) and not files_named(word)) or (TEST.fullmatch(word) and word not in TESTS)
    ]


def files_named(word):
    """Where a path leads, from the root; a bare name may be of any folder, as whoever reads it knows which."""
    if "/" in word:
        return sorted(ROOT.glob(word))
    return [path for folder in FOLDERS for path in (ROOT / folder).rglob(word)] + sorted(ROOT.glob(word))


def headings(text):
    """The anchors that a document has, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}


def broken_links(path, text):
    found = []
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        leads_to = path.parent / target if target else path
        if not leads_to.exists() or (anchor and anchor not in headings(read(leads_to))):
            found.append(link)
    return found


MISSING = [
    "`tests/test_nothing.py`",
    "`impl/server/nothing`",
    "`tests/test_noth*.py` and more",
    "see `nothing.py`",
    "`test_nothing_at_all`",
    "`python impl/nothing.py --help`",
]
THERE = [
    "`tests/test_documents.py`",
    "`tests/test_nbd_*.py`",
    "`impl/nbd` and `impl/`",
    "`overlay.py`",
    "`pyproject.toml`",
    "`test_what_is_not_there_is_missed`",
    "`/var/tmp`, `disk.img`, `impl.server`",
]


@pytest.mark.parametrize("text", MISSING)
def test_what_is_not_there_is_missed(text):
    assert missing_names(text)


@pytest.mark.parametrize("text", THERE)
def test_what_is_there_is_not_missed(text):
    assert missing_names(text) == []


@pytest.mark.parametrize("link", ["nothing.md", "../nothing.md", "protocol.md#nothing", "#nothing"])
def test_a_link_that_leads_nowhere_is_broken(link):
    assert broken_links(ROOT / "docs" / "architecture.md", f"[text]({link})") == [link]


@pytest.mark.parametrize(
    "link", ["protocol.md", "../README.md", "protocol.md#handshake", "#the-server", "https://x.org"]
)
def test_a_link_that_leads_somewhere_is_not_broken(link):
    assert broken_links(ROOT / "docs" / "architecture.md", f"[text]({link})\n") == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_tests_that_a_document_names_are_there_and_its_links_lead_somewhere(path):
    assert missing_names(read(path)) == []
    assert broken_links(path, read(path)) == []


def test_the_example_of_another_object_than_a_disk_runs():
    (example,) = re.findall(r"```python\n(.*?)```", read(ROOT / "docs" / "linearizability.md"), re.S)
    assert example.count("assert") == 3
    exec(example, {})


# The page on the protocol.


def rows(text):
    """The tables' rows: the cells of each."""
    found = [
        [cell.strip() for cell in line.strip("|\n").split(" | ")] for line in text.splitlines() if line[:2] == "| "
    ]
    return [row for row in found if row[-1] != "tested in"]


PROTOCOL = rows(read(ROOT / "docs" / "protocol.md"))


def name_of(member):
    return PREFIXES[type(member)] + member.name


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_every_number_of_the_protocol_has_one_row_that_says_what_is_done_with_it(member):
    named = [row for row in PROTOCOL if name_of(member) in CODE.findall(row[0])]
    assert len(named) == 1, named


def test_every_name_of_the_protocol_in_a_row_is_one_that_the_code_has():
    known = {name_of(member) for member in MEMBERS}
    named = {word for row in PROTOCOL for word in CODE.findall(row[0]) if word.startswith("NBD_")}
    assert named == known


@pytest.mark.parametrize("row", PROTOCOL, ids=lambda row: row[0])
def test_every_row_says_what_is_done_where_and_in_which_tests(row):
    *what, handled, tested = row
    assert all(what)
    assert any(path.is_relative_to(ROOT / "impl") for word in CODE.findall(handled) for path in files_named(word))
    assert files_of_tests(tested)


def files_of_tests(tested):
    """The files of the tests in a row's last cell."""
    words = CODE.findall(tested)
    return [path for word in words for path in ([TESTS[word]] if word in TESTS else files_named(word))]


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_the_tests_that_a_row_names_know_what_it_is_about(member):
    (row,) = [row for row in PROTOCOL if name_of(member) in CODE.findall(row[0])]
    text = "".join(map(read, files_of_tests(row[-1])))
    assert re.search(rf"\b{member.name}\b", text), [path.name for path in files_of_tests(row[-1])]
