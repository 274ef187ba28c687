"""Each contract of the model can fail, and only "confirmed" counts as confirmed.

That each is confirmed is for `python -m check.contracts` to say, which `make test` runs beside the tests.

Source:  `model/contracts.py`, `check/contracts.py`.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from check.contracts import ROOT, UNDECIDED, Finding, Verdict, contracts_in, examine, main, meaning

CONTRACTS = contracts_in(ROOT / "model" / "contracts.py")

# What is broken, file, text, what it becomes, and a contract that must notice.
MUTANTS = [
    (
        "a part written to a trimmed block brings the base back",
        "block.py",
        "    old = contents(block, base)\n",
        "    old = block.data if block.state == State.ALLOCATED else base\n",
        "a_write_changes_its_bytes_and_no_others",
    ),
    (
        "a write moves what comes after it",
        "block.py",
        "old[start + len(data) :]",
        "old[len(data) :][: len(old) - start - len(data)]",
        "a_write_changes_its_bytes_and_no_others",
    ),
    (
        "a trimmed block shows the base",
        "block.py",
        "    return bytes(len(base))\n",
        "    return base\n",
        "a_block_reads_as_its_state_says",
    ),
    (
        "zeroes demanded with storage get none",
        "block.py",
        "    return allocated(bytes(len(base))) if no_hole else TRIMMED\n",
        "    return TRIMMED\n",
        "zeroes_leave_the_state_of_the_table",
    ),
    (
        "a part demanded with storage gets none in a trimmed block",
        "block.py",
        "    if block.state == State.TRIMMED and not no_hole:\n",
        "    if block.state == State.TRIMMED:\n",
        "zeroes_leave_the_state_of_the_table",
    ),
    (
        "a part of the zeroes is left out at the end",
        "block.py",
        "bytes(end - start))\n",
        "bytes(max(1, end - start - 1)))\n",
        "zeroes_read_as_zeroes_and_the_rest_as_before",
    ),
    (
        "a trim of a part does nothing",
        "block.py",
        "    return zero(block, base, start, end)\n",
        "    return zero(block, base, start, end) if is_whole(base, start, end) else block\n",
        "a_trim_reads_as_zeroes_and_the_rest_as_before",
    ),
    (
        "a block counts as whole when only its end is reached",
        "block.py",
        "    return start == 0 and end == len(base)\n",
        "    return end == len(base)\n",
        "a_trim_leaves_the_state_of_the_table",
    ),
    (
        "copying a trimmed block up brings the base back",
        "block.py",
        "allocated(base) if block.state == State.NOT_ALLOCATED else block",
        "allocated(base) if block.state != State.ALLOCATED else block",
        "a_copying_read_keeps_the_base_and_gives_the_same_bytes",
    ),
    (
        "a fast zero is granted over the base",
        "block.py",
        "or block.state == State.TRIMMED)",
        "or block.state != State.ALLOCATED)",
        "a_fast_zero_is_one_that_stores_nothing",
    ),
    (
        "a base read to warm it up is kept",
        "block.py",
        "if mode == CacheMode.COW else block",
        "if mode in (CacheMode.READ, CacheMode.COW) else block",
        "caching_copies_the_base_up_in_mode_cow_only",
    ),
    (
        "a trimmed block is reported as zeroes with storage",
        "block.py",
        "hole=True, zero=True",
        "hole=False, zero=True",
        "extents_are_what_the_state_says",
    ),
    (
        "a write up to the end of a block is thought to need no base",
        "block.py",
        "and not is_whole(base, start, end)\n",
        "and end < len(base)\n",
        "a_change_that_needs_no_base_does_not_depend_on_it",
    ),
    (
        "a read of what the base shows is thought to need no base",
        "block.py",
        """read_copying` have to read the base.\"""
    return block.state == State.NOT_ALLOCATED
""",
        """read_copying` have to read the base.\"""
    return False
""",
        "a_read_that_needs_no_base_does_not_depend_on_it",
    ),
    (
        "caching what the base shows is thought to need it in no mode that keeps it",
        "block.py",
        "mode in (CacheMode.READ, CacheMode.COW)\n",
        "mode == CacheMode.READ\n",
        "a_read_that_needs_no_base_does_not_depend_on_it",
    ),
    (
        "where the base knows no extents a byte is left out",
        "block.py",
        """    if block.state == State.ALLOCATED or base_extents is None:
        return (data(length),)
""",
        """    if base_extents is None:
        return (data(length - 1),)
    if block.state == State.ALLOCATED:
        return (data(length),)
""",
        "a_base_that_knows_no_extents_is_data",
    ),
    (
        "a piece reaches into the next block",
        "device.py",
        "origin + block_size)\n",
        "origin + block_size + 1)\n",
        "pieces_follow_each_other_and_stay_in_their_blocks",
    ),
    (
        "each block gets the data from its own start on",
        "device.py",
        "at = piece.index * device.block_size + start - request.offset\n",
        "at = start\n",
        "a_write_to_the_device_changes_its_bytes_and_no_others",
    ),
    (
        "zeroes are written to the first block only",
        "device.py",
        "        return one.zero(block, base, start, end, no_hole=request.no_hole)\n",
        "        return block if piece.index else one.zero(block, base, start, end, no_hole=request.no_hole)\n",
        "zeroes_on_the_device_change_their_bytes_and_no_others",
    ),
    (
        "a fast zero is granted when any of its blocks is fast",
        "device.py",
        "not all(_is_fast(",
        "not any(_is_fast(",
        "a_fast_zero_is_done_without_storing_or_changes_nothing",
    ),
    (
        "the short block at the end is never whole",
        "device.py",
        "        return one.trim(block, base, start, end)\n",
        "        return one.trim(block, base.ljust(device.block_size), start, end)\n",
        "a_whole_trim_gives_the_space_of_short_blocks_back_too",
    ),
    (
        "a copying read gives whole blocks",
        "device.py",
        "one.read_copying(block, base, piece.start, piece.end)",
        "one.read_copying(block, base, 0, piece.end)",
        "a_copying_read_of_the_device_gives_what_it_contains",
    ),
    (
        "the first byte beyond the end is on the device",
        "device.py",
        "request.offset + request.length > device.size:",
        "request.offset + request.length > device.size + 1:",
        "what_lies_beyond_the_end_is_refused",
    ),
]


def copy_of_the_model(root: Path) -> Path:
    """A tree of its own in which the model can be broken."""
    shutil.copytree(ROOT / "model", root / "model", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def replace_once(path: Path, old: str, new: str) -> None:
    """Substitute a text that must be there exactly once: a mutant that does not apply proves nothing."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(("file", "old", "new", "contract"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_broken_model_is_refuted(tmp_path, file, old, new, contract):
    root = copy_of_the_model(tmp_path)
    replace_once(root / "model" / file, old, new)
    finding = examine(contract, root)
    assert finding.verdict is Verdict.REFUTED, finding


def test_every_contract_about_a_block_or_a_device_has_a_mutant_it_refutes():
    assert {contract for *_, contract in MUTANTS} == set(CONTRACTS)


def test_a_precondition_nothing_meets_is_noticed(tmp_path):
    root = copy_of_the_model(tmp_path)
    contract = "a_base_that_knows_no_extents_is_data"
    replace_once(root / "model" / "contracts.py", "pre: 0 <= state <= 1\n", "pre: 1 <= state <= 0\n")
    finding = examine(contract, root)
    assert finding.verdict is Verdict.UNMET, finding
    assert not finding.is_as_it_must_be()


def test_every_claim_in_the_module_is_run():
    """A claim whose `post:` line is lost would never be missed otherwise."""
    tree = ast.parse((ROOT / "model" / "contracts.py").read_text(encoding="utf-8"))
    claims = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "bool"
    ]
    assert claims == CONTRACTS


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("/x/contracts.py:9: info: Confirmed over all paths.", Verdict.CONFIRMED),
        ("/x/contracts.py:9: info: Not confirmed.", Verdict.UNDECIDED),
        ("/x/contracts.py:9: info: Unable to meet precondition.", Verdict.UNMET),
        ("/x/contracts.py:9: error: false when calling f(0)", Verdict.REFUTED),
        ("/x/contracts.py:9: info: Confirmed over all paths.\n/x/b.py:1: error: IndexError", Verdict.REFUTED),
        ("", Verdict.SILENT),
        ("Traceback (most recent call last):", Verdict.SILENT),
    ],
)
def test_the_tool_is_believed_word_for_word(text, verdict):
    assert meaning(text) is verdict


def test_only_a_confirmed_contract_is_as_it_must_be_unless_a_reason_is_on_record(monkeypatch):
    for verdict in Verdict:
        assert Finding("claim", verdict, 0.0, "").is_as_it_must_be() == (verdict is Verdict.CONFIRMED)
    monkeypatch.setitem(UNDECIDED, "claim", "takes an hour")
    allowed = (Verdict.CONFIRMED, Verdict.UNDECIDED)
    for verdict in Verdict:
        assert Finding("claim", verdict, 0.0, "").is_as_it_must_be() == (verdict in allowed)


def test_the_list_of_the_undecided_names_only_contracts():
    assert set(UNDECIDED) <= set(CONTRACTS)


def test_the_command_says_what_is_no_contract(capsys):
    assert main(["no_such_claim"]) == 2
    assert "no_such_claim" in capsys.readouterr().err


def test_the_command_prints_one_line_for_each(capsys):
    assert main(["a_base_that_knows_no_extents_is_data"]) == 0
    assert "confirmed   a_base_that_knows_no_extents_is_data" in capsys.readouterr().out
