"""Small histories for tests: written as rows, made of numbers, and judged by definition.

Source:  Herlihy and Wing, "Linearizability", 1990: `judge` is its definition, by searching or by trying all orders.
Shapes:  a row is (kind, first granule, granules, call, ret, value or outcome...); see `history_of`. Granules are of 1
byte.
"""

from itertools import combinations_with_replacement, permutations, product

from hypothesis import strategies as st

from model.history import BASE, NEVER, NOT_DONE, OK, PENDING, TORN, ZERO, History, Operation
from model.wgl import Call, Verdict, search

BLOCK = 2  # Granules to a block.


def history_of(*rows, size=4, **options):
    """A history of rows: (op, offset, length, call, ret, value, outcome=OK). A read's value may be one name."""
    history = History(**{"size": size, "block_size": BLOCK, "granule": 1, **options})
    for index, row in enumerate(rows):
        op, offset, length, call, ret, value, outcome = (*row, None, OK)[:7] if len(row) < 6 else (*row, OK)[:7]
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


# Made of numbers, so that a failure shrinks: each request is one number, taken apart digit by digit.

OUTCOMES = (OK, OK, OK, OK, OK, OK, PENDING, PENDING, "EIO", "EINVAL")
PLAIN = ("read", "write", "read", "write")
KINDS = ("read", "write", "read", "zero", "read", "write", "trim")


def digits(number, *bases):
    """The last digits of a number, each in a base of its own."""
    found = []
    for base in bases:
        number, digit = divmod(number, base)
        found.append(digit)
    return found


def made_of(numbers, granules, ticks, kinds, **options):
    """A history in which each request takes effect at some instant of its interval, if its number says no other.

    A read whose lie is 0 returns something else on one granule.
    """
    bases = (
        len(kinds),
        granules,
        granules,
        ticks,
        ticks,
        8,
        len(OUTCOMES),
        12,
        2,
        granules,
        granules + len(numbers) + 3,
    )
    rows, events = [], []
    for index, number in enumerate(numbers):
        kind, offset, length, one, other, instant, outcome, lie, happens, where, what = digits(number, *bases)
        call, ret = sorted((one, other))
        length = min(length + 1, granules - offset)
        rows.append([kinds[kind], offset, length, call, ret, None, OUTCOMES[outcome]])
        events.append((call + (ret - call) * instant / 7, index, happens, lie, where % length, what))
    held = [ZERO if options.get("base_is_zero") else BASE] * granules
    names = [f"w{index}" for index, row in enumerate(rows) if row[0] == "write"]
    for _, index, happens, lie, where, what in sorted(events):
        op, offset, length, *_, outcome = row = rows[index]
        if op == "read":
            values = held[offset : offset + length]
            if lie == 0:
                others = [BASE, ZERO, TORN, *names]
                values[where] = others[what % len(others)]
            row[5] = tuple((value, 1) for value in values)
            continue
        if op == "write":
            row[5] = f"w{index}"
        if outcome == OK or (outcome != "EINVAL" and happens):
            held[offset : offset + length] = [row[5] or ZERO] * length
    return history_of(*rows, size=granules, **options)


def histories(granules, requests_max, kinds=KINDS):
    """Small histories, right and wrong, with ties, requests that are pending or failed, zeroes and trims."""
    return st.builds(
        lambda numbers, ticks, trim_reads_zero, base_is_zero: made_of(
            numbers, granules, ticks, kinds, trim_reads_zero=trim_reads_zero, base_is_zero=base_is_zero
        ),
        st.lists(st.integers(0, 1 << 48), min_size=1, max_size=requests_max),
        st.sampled_from([3, 6, 20]),
        st.booleans(),
        st.booleans(),
    )


# Every history of a few requests on one granule, up to names.


def interval_orders(count):
    """Every way in which `count` requests can lie in time: as intervals, once for each interval order.

    Each has one representation on the fewest ticks, in which every tick begins a request and ends one (Fishburn).
    """
    for ticks in range(1, count + 1):
        intervals = [(call, ret) for call in range(ticks) for ret in range(call, ticks)]
        everywhere = set(range(ticks))
        for chosen in combinations_with_replacement(intervals, count):
            if {call for call, _ in chosen} == everywhere == {ret for _, ret in chosen}:
                yield chosen


def every_history(count, kinds, **options):
    """Each of `kinds` in each place of each interval order.

    W is a write, Z a zero; R, 0 and B are reads of a write (of each in turn), of zero and of the base. Requests in
    the same interval may change places, so only one order of these is made.
    """
    for intervals in interval_orders(count):
        for chosen in product(kinds, repeat=count):
            same = zip(intervals, intervals[1:], chosen, chosen[1:], strict=False)
            if any(one == other and kind > next_kind for one, other, kind, next_kind in same):
                continue
            names = [f"w{at}" for at, kind in enumerate(chosen) if kind == "W"]
            readers = [at for at, kind in enumerate(chosen) if kind == "R"]
            for read in product(names, repeat=len(readers)):
                returned = dict(zip(readers, read, strict=True))
                rows = [
                    {
                        "W": ("write", 0, 1, call, ret, f"w{at}"),
                        "Z": ("zero", 0, 1, call, ret),
                        "R": ("read", 0, 1, call, ret, returned.get(at, "")),
                        "0": ("read", 0, 1, call, ret, ZERO),
                        "B": ("read", 0, 1, call, ret, BASE),
                    }[kind]
                    for at, ((call, ret), kind) in enumerate(zip(intervals, chosen, strict=True))
                ]
                yield history_of(*rows, size=1, **options)
