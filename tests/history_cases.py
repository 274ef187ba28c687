"""Small histories for tests: written as rows, made of numbers, and judged by definition.

Source:  Herlihy and Wing, "Linearizability", 1990: `judge` is its definition, by searching or by trying all orders.
Shapes:  a row is (kind, first granule, granules, call, ret, value or outcome...); see `history_of`. Granules are of 1
byte.
"""

from itertools import permutations

from model.history import BASE, NEVER, NOT_DONE, OK, PENDING, ZERO, History, Operation
from model.wgl import Call, Verdict, search

BLOCK = 2  # Granules to a block.


def history_of(*rows, size=4, **options):
    """A history of rows: (op, offset, length, call, ret, value, outcome=OK). A read's value may be one name."""
    history = History(**{"size": size, "block_size": BLOCK, "granule": 1, **options})
    for index, row in enumerate(rows):
        op, offset, length, call, ret, value, outcome = (*row, *(None, OK)[len(row) - 5 :])
        if op == "read" and isinstance(value, str):
            value = ((value, length),)
        client = f"c{index}"
        history.append(Operation(client, index, op, offset, length, call, ret, outcome, value))
    return history


# By definition.


class Device:
    """Bytes that hold values. An operation is (is_read, unit, {byte: value})."""

    def __init__(self, history):
        self._first = (ZERO if history.base_is_zero else BASE,) * history.size

    def init(self):
        return self._first

    def step(self, state, op):
        is_read, _, values = op
        if is_read:
            return all(state[byte] == value for byte, value in values.items()), state
        return True, tuple(values.get(byte, held) for byte, held in enumerate(state))

    def is_read(self, op):
        return op[0]

    def part_of(self, op):
        return op[1]


def units_of(history, level):
    """For each byte, what takes effect with it at an instant."""
    size = {"request": history.size, "block": history.block_size, "sector": history.granule}[level]
    return [byte // size for byte in range(history.size)]


def calls_of(history, level):
    """What the definition says of each request, cut as the level asks."""
    calls = []
    units = units_of(history, level)
    for index, it in enumerate(history):
        if it.op in ("cache", "flush", "status") or it.outcome in NOT_DONE:
            continue
        span = range(it.offset, it.offset + it.length)
        if it.op == "read":
            if it.outcome != OK:
                continue
            values = [name for name, length in it.value for _ in range(length)]
            values = {byte: value for byte, value in zip(span, values, strict=True) if is_checked(history, it, byte)}
        elif it.op == "write":
            values = dict.fromkeys(span, it.value)
        else:
            is_zero = it.op == "zero" or history.trim_reads_zero
            values = dict.fromkeys(span, ZERO if is_zero else f"left by {index}")
        failed = it.outcome not in (OK, PENDING)
        pieces = {}
        for byte, value in values.items():
            pieces.setdefault((units[byte], byte if failed else None), {})[byte] = value
        ret = NEVER if it.outcome == PENDING else it.ret
        for (unit, _), piece in pieces.items():
            calls.append(Call((it.op == "read", unit, piece), it.call, ret, it.outcome != OK))
    return calls


def is_checked(history, read, byte):
    """Whether what was read there is not what a trim that promises nothing may have left."""
    if history.trim_reads_zero:
        return True
    here = [it for it in history if it.offset <= byte < it.offset + it.length and it.outcome not in NOT_DONE]
    written = [it for it in here if it.op in ("write", "zero") and it.outcome == OK]
    for trim in here:
        if trim.op != "trim" or trim.call > read.ret:
            continue
        ended = NEVER if trim.outcome == PENDING else trim.ret
        if not any(it.call > ended and it.ret < read.call for it in written):
            return False
    return True


def judge(history, level):
    """Whether the history is linearizable, by searching."""
    return search(Device(history), calls_of(history, level)).verdict


def judge_by_all_orders(model, calls):
    """The same for any model, by trying every order of every choice of optional calls."""
    optional = [index for index, call in enumerate(calls) if call.optional]
    for chosen in range(1 << len(optional)):
        left_out = {index for at, index in enumerate(optional) if not chosen >> at & 1}
        there = [index for index in range(len(calls)) if index not in left_out]
        if any(is_legal(model, [calls[index] for index in order]) for order in permutations(there)):
            return Verdict.LINEARIZABLE
    return Verdict.NOT_LINEARIZABLE


def is_legal(model, calls):
    """Whether calls in this order respect real time and the model."""
    state = model.init()
    for at, call in enumerate(calls):
        if any(later.ret < call.call for later in calls[at + 1 :]):
            return False
        legal, state = model.step(state, call.op)
        if not legal:
            return False
    return True
