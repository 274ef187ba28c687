"""Histories to look at: of a device that does everything right, and with one thing wrong, both from a seed."""

import random

from check.view.finding import LINEARIZABLE, Chain, Finding, Range
from check.view.judge import finding_of
from model.history import BASE, NEVER, OK, PENDING, ZERO, History, Operation
from model.linearizability import decide

GRANULE = 4096
BLOCK = 65536


def simulated(count, clients=4, blocks=4, seed=1, in_flight=1):
    """A history of requests that each took effect at one instant, and the order of these."""
    chance = random.Random(seed)
    granules = blocks * BLOCK // GRANULE
    holds = [BASE] * granules
    free = [(chance.randrange(1000), f"client {client + 1}") for client in range(clients) for _ in range(in_flight)]
    asked = []
    for number in range(count):
        at, client = free.pop(free.index(min(free)))
        call, point, ret = at + 200, at + 200 + chance.randrange(200, 3000), 0
        ret = point + chance.randrange(200, 3000)
        asked.append((point, call, ret, client, number))
        free.append((ret, client))
    found = {}
    for point, call, ret, client, number in sorted(asked):
        op = chance.choices(("read", "write", "zero", "trim"), (50, 40, 5, 5))[0]
        first = chance.randrange(granules)
        length = min(chance.choice((1, 1, 2, 16, 24)), granules - first)
        value = None
        if op == "read":
            value = runs(holds[first : first + length])
        else:
            value = f"w{number}" if op == "write" else None
            holds[first : first + length] = [value or ZERO] * length
        found[number] = (point, Operation(client, number, op, first * GRANULE, length * GRANULE, call, ret, OK, value))
    history = History(blocks * BLOCK, BLOCK, GRANULE)
    places = {}
    for number, (_, operation) in sorted(found.items(), key=lambda item: (item[1][1].call, item[0])):
        places[number] = history.append(operation)
    order = tuple(places[number] for number, _ in sorted(found.items(), key=lambda item: (item[1][0], item[0])))
    return history, order


def runs(names):
    """Neighbouring granules of one name together."""
    found = []
    for name in names:
        if found and found[-1][0] == name:
            found[-1][1] += GRANULE
        else:
            found.append([name, GRANULE])
    return tuple(map(tuple, found))


def linearizable(count=200, **options):
    """A history and what a checker finds in it."""
    history, order = simulated(count, **options)
    words = "Every request takes effect at one instant between its invocation and its answer; here is an order."
    return history, Finding(LINEARIZABLE, "request", words, chains=(Chain(order),))


def lost_update(around=120, seed=3, level="request"):
    """A write that was answered, and then is not there: in the midst of requests with which all is well."""
    history, _ = simulated(around, seed=seed, in_flight=2)
    where = Range(4 * BLOCK, BLOCK)
    wide = History(5 * BLOCK, BLOCK, GRANULE)
    middle = sorted(history.call)[around // 2]
    lost = [
        Operation("client 1", 9001, "write", where.offset, 4096, middle, middle + 9000, OK, "w9001"),
        Operation("client 2", 9002, "write", where.offset, BLOCK, middle + 2500, middle + 4500, OK, "w9002"),
        Operation("client 2", 9003, "read", where.offset, BLOCK, middle + 5200, middle + 6600, OK, (("w9002", BLOCK),)),
        Operation(
            "client 3",
            9004,
            "read",
            where.offset,
            BLOCK,
            middle + 10200,
            middle + 12000,
            OK,
            (("w9001", 4096), ("base", BLOCK - 4096)),
        ),
        Operation("client 4", 9005, "write", where.offset + 8192, 4096, middle + 9500, NEVER, PENDING, "w9005"),
        Operation("client 4", 9006, "trim", where.offset, BLOCK, middle + 12500, middle + 14000, "EIO"),
    ]
    operations = sorted([*history, *lost], key=lambda each: each.call)
    for each in operations:
        wide.append(each)
    return wide, finding_of(wide, decide(wide, level))
