"""The viewer: what is put into a page, and what a real browser shows of it.

Source:  docs/viewer.md says what users may count on; Web Content Accessibility Guidelines 2.2, 1.4.3, for
         contrast.
"""

import json
import re
import sys
import tempfile
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import ROOT, need, refuse, run
from shown_histories import BLOCK, linearizable, lost_update, simulated

from check.explore.programs import make_program, parse_program
from check.explore.replay import format_replay, parse_replay, play
from check.explore.search import DONE, Machine, Question
from check.explore.show import columns as shown_columns
from check.explore.subjects import KINDS, Modes
from check.history.format import save
from check.view.circle import circle
from check.view.columns import EXACT_MAX, columns
from check.view.finding import (
    LINEARIZABLE,
    NOT_CHECKED,
    NOT_LINEARIZABLE,
    UNKNOWN,
    Finding,
    Range,
    around,
    last_time,
    points,
)
from check.view.judge import finding_of
from check.view.page import Picture, page
from check.view.partial import longest
from check.view.story import picture_of
from impl.errors import UsageError
from model.history import BASE, LEVELS, NEVER, OK, OPS, PENDING, ZERO, History, Operation
from model.linearizability import Decision, decide
from model.wgl import Verdict

REPLAY = "bitmap-lock:request:N:0::65536,65536:write 0+512 | write 0+64K:A5B2A3B2"
HARMLESS = "bitmap-lock:request:N:0::65536,65536:write 0+512 | write 0+64K:A8B4"
HOSTILE = "</script><script>document.title='taken'</script><!--<img src=x onerror=\"document.title='taken'\">"


def history_of(*operations, size=8192, **options):
    history = History(size, 4096, 4096, **options)
    for each in operations:
        history.append(each)
    return history


def write(client, id_, call, ret, value, offset=0, length=4096, outcome=OK):
    return Operation(client, id_, "write", offset, length, call, ret, outcome, value)


def read(client, id_, call, ret, *runs, offset=0):
    return Operation(client, id_, "read", offset, sum(length for _, length in runs), call, ret, OK, tuple(runs))


# Where each request takes effect.


@given(st.integers(0, 1000), st.integers(1, 60))
def test_each_point_is_within_its_request_and_not_before_the_one_ahead_of_it(seed, count):
    history, order = simulated(count, seed=seed, in_flight=2)
    found = points(history, order)
    assert found == sorted(found)
    for index, point in zip(order, found, strict=True):
        assert history.call[index] <= point <= history.ret[index]


def test_a_request_that_was_never_answered_has_its_point_before_the_end_of_the_history():
    history = history_of(write("a", 1, 0, NEVER, "w1", outcome=PENDING), read("b", 2, 10, 30, ("w1", 4096)))
    assert points(history, (0, 1)) == sorted(points(history, (0, 1)))
    assert points(history, (0, 1))[0] <= last_time(history) == 30


def test_an_order_that_real_time_forbids_has_no_points():
    history = history_of(write("a", 1, 0, 10, "w1"), read("b", 2, 20, 30, ("w1", 4096)))
    with pytest.raises(ValueError, match="cannot take effect here"):
        points(history, (1, 0))


# How far an order gets, and why no further. (history, conflict, orders as far as they get, who is refused there)

LOST = history_of(
    write("a", 1, 0, 10, "w1"), write("b", 2, 20, 30, "w2"), read("a", 3, 40, 50, ("w1", 4096)), base_is_zero=True
)
TORN_REQUEST = history_of(write("a", 1, 0, 10, "w1", 0, 8192), read("b", 2, 2, 8, ("w1", 4096), (BASE, 4096)))
NEVER_WRITTEN = history_of(read("b", 2, 2, 8, ("w9", 4096)))
CONFLICTS = [
    (LOST, [((0, 1), 2)]),
    (TORN_REQUEST, [((0,), 1)]),
    (NEVER_WRITTEN, [((), 0)]),
]
EXPLAINED = [
    history_of(write("a", 1, 0, 10, "w1"), write("b", 2, 5, 30, "w2"), read("a", 3, 40, 50, ("w1", 4096))),
    history_of(write("a", 1, 0, NEVER, "w1", outcome=PENDING), read("a", 3, 40, 50, ("w1", 4096))),
    history_of(write("a", 1, 0, 5, "w1", outcome="EINVAL"), read("a", 3, 40, 50, (BASE, 4096))),
    history_of(Operation("a", 1, "trim", 0, 4096, 0, 5, OK), read("a", 2, 6, 7, (ZERO, 4096))),
]


def conflict_of(history):
    return Finding(NOT_LINEARIZABLE, "request", "", Range(0, history.size), conflict=tuple(range(len(history))))


@pytest.mark.parametrize(("history", "expected"), CONFLICTS)
def test_the_longest_orders_of_a_conflict_end_at_a_read_that_cannot_be_next(history, expected):
    found = longest(history, conflict_of(history))
    assert [(each.requests, each.refused[0].request) for each in found] == expected


@pytest.mark.parametrize("history", EXPLAINED)
def test_no_order_is_called_the_longest_where_one_explains_all(history):
    assert longest(history, conflict_of(history)) == ()


def test_of_a_circle_each_edge_begins_where_the_one_before_ends_and_the_last_leads_back():
    edges = circle(TORN_REQUEST, (0, 1), Range(0, 8192))
    assert [(edge.before, edge.after) for edge in edges] == [(0, 1), (1, 0)]
    assert "overwrites" in edges[1].why


@pytest.mark.parametrize("history", EXPLAINED)
def test_requests_that_have_an_order_have_no_circle(history):
    assert circle(history, range(len(history)), Range(0, history.size)) == ()


def test_what_is_cropped_to_is_the_conflict_and_a_few_requests_to_the_same_block():
    history, finding = lost_update(around=2000)
    found = around(history, finding)
    assert set(finding.conflict) <= set(found)
    assert len(found) < 30
    for index in found:
        first, last = history.offset[index], history.offset[index] + history.length[index] - 1
        assert first // BLOCK <= finding.where.offset // BLOCK <= last // BLOCK


# What the checker decided, and what is drawn of it.


def finding(history, level):
    return finding_of(history, decide(history, level))


def test_the_values_that_would_have_to_be_there_at_one_time_are_those_of_the_conflict():
    history, found = lost_update()
    assert {span.name for span in found.spans} == {"w9002", BASE}
    one, other = found.spans
    assert one.start < other.end
    assert other.start < one.end
    assert set(one.requests) | set(other.requests) == set(found.conflict)
    assert {history.id[each] for each in found.conflict} == {9002, 9004}


def test_what_covers_several_bytes_is_shown_as_a_circle_of_what_has_to_be_first():
    found = finding(TORN_REQUEST, "request")
    assert (found.verdict, found.spans) == (NOT_LINEARIZABLE, ())
    assert [(edge.before, edge.after) for edge in found.edges] == [(0, 1), (1, 0)]


def test_why_whole_requests_have_no_order_is_told_sentence_by_sentence_without_a_script():
    found = finding(TORN_REQUEST, "request")
    text = Elements(page(Picture("torn", TORN_REQUEST, found))).text
    assert len(found.reasons) == 3
    for sentence in found.reasons:
        assert sentence in text


def test_where_too_many_orders_would_have_to_be_tried_the_page_says_so():
    many = [write(f"c{at}", at, 0, 100, f"w{at}") for at in range(20)]
    history = history_of(*many, read("r", 20, 200, 300, ("w0", 4096)), read("r", 21, 400, 500, ("w1", 4096)))
    found = conflict_of(history)
    assert longest(history, found) == ()
    assert "there are too many to try" in Elements(page(Picture("many", history, found))).text
    assert "too many to try" not in Elements(page(Picture("torn", TORN_REQUEST, finding(TORN_REQUEST, "request")))).text


@pytest.mark.parametrize("level", LEVELS)
def test_each_part_of_a_linearizable_history_has_its_order(level):
    history, _ = simulated(300)
    found = finding(history, level)
    assert found.verdict == LINEARIZABLE
    for chain in found.chains:
        assert points(history, chain.requests) == sorted(points(history, chain.requests))
    assert {index for chain in found.chains for index in chain.requests} == set(range(len(history)))


def test_a_budget_that_was_spent_is_no_verdict_and_has_no_order():
    found = finding_of(LOST, Decision(Verdict.UNKNOWN, "request", None, "the search was ended after 3 seconds"))
    assert found.verdict == UNKNOWN
    assert found.words == "No answer was found: the search was ended after 3 seconds."
    assert (found.chains, found.conflict, found.partials) == ((), (), ())


def test_reads_that_no_rule_can_judge_are_counted():
    """A read of what a trim left, where a trim promises nothing."""
    operations = [Operation("a", 1, "trim", 0, 4096, 0, 5, OK), read("a", 2, 6, 7, ("?", 4096))]
    found = finding(history_of(*operations, trim_reads_zero=False), "request")
    assert found.verdict == LINEARIZABLE
    assert "Of 1 reads" in found.words


@pytest.mark.parametrize("history", [LOST, NEVER_WRITTEN])
def test_a_verdict_is_shown_as_the_checker_gave_it(history):
    decision = decide(history, "sector")
    found = finding_of(history, decision)
    assert found.verdict == decision.verdict.value == NOT_LINEARIZABLE
    assert found.words == decision.why + "."
    assert found.conflict == decision.certificate.operations


# The page.


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text as it is without a script."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._hidden = [], "", 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self._hidden else data


def data_in(text):
    """What the page's script is given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def lost():
    """A violation: the picture, and its page."""
    history, finding = lost_update()
    picture = Picture("lost.jsonl", history, finding)
    return picture, page(picture)


def hostile_picture():
    history = history_of(
        Operation(HOSTILE, 1, "write", 0, 4096, 0, 10, OK, HOSTILE, (HOSTILE,)),
        Operation("b", 2, "read", 0, 4096, 0, 10, HOSTILE),
    )
    finding = Finding(NOT_LINEARIZABLE, "request", HOSTILE, conflict=(0, 1))
    return Picture(HOSTILE, history, finding, notes=(HOSTILE,))


def test_equal_pictures_give_equal_pages():
    assert page(Picture("x", *lost_update())) == page(Picture("x", *lost_update()))


def test_no_value_can_leave_the_place_it_stands_in():
    ours = [tag for tag, _ in Elements(page(Picture("x", *lost_update(20)))).found]
    elements = Elements(page(hostile_picture()))
    assert [tag for tag, _ in elements.found].count("script") == ours.count("script") == 2
    assert not [tag for tag, _ in elements.found if tag == "img"]
    assert HOSTILE in elements.text
    assert HOSTILE in data_in(page(hostile_picture()))["requests"]["tables"]["name"]


def test_a_page_names_nothing_that_would_have_to_be_fetched(lost):
    elements = Elements(lost[1])
    for tag, attributes in elements.found:
        assert not {"src", "href", "action", "srcset", "data"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert "url(" not in lost[1]
    assert "@import" not in lost[1]
    policy = next(attributes["content"] for tag, attributes in elements.found if attributes.get("http-equiv"))
    assert re.fullmatch(r"default-src 'none'; style-src 'sha256-\S+'; script-src 'sha256-\S+'", policy)


def test_the_verdict_and_what_it_rests_on_can_be_read_without_a_script(lost):
    picture, text = lost
    said = Elements(text).text
    assert picture.finding.verdict in said
    assert picture.finding.words in said
    for index in picture.finding.conflict:
        assert f"{picture.history.client[index]} #{picture.history.id[index]}" in said
    assert "it returned base, where w9002 would be" in said


def test_a_request_takes_less_than_a_hundred_bytes_of_the_page():
    small, large = (len(page(Picture("x", *linearizable(count)))) for count in (1000, 5000))
    assert (large - small) / 4000 < 100


@given(st.integers(0, 1000), st.integers(0, 40), st.integers(0, 1 << 60))
def test_the_columns_of_a_page_say_all_that_the_history_says(seed, count, origin):
    history, _ = simulated(count, seed=seed)
    history.call = [origin + each for each in history.call]
    history.ret = [origin + each if number % 7 else NEVER for number, each in enumerate(history.ret)]
    assert list(from_columns(json.loads(json.dumps(columns(history))))) == list(history)


def from_columns(found):
    """The operations again, as the script decodes them."""
    tables, at = found["tables"], int(found["origin"])
    for row in range(len(found["op"])):
        at += found["call"][row]
        took, op = found["took"][row], tables["op"][found["op"][row]]
        yield Operation(
            tables["client"][found["client"][row]],
            int(found["id"][row]),
            op,
            found["offset"][row],
            found["length"][row],
            at,
            NEVER if took < 0 else at + took,
            tables["outcome"][found["outcome"][row]],
            value_from(found["value"][row], tables, op, found["length"][row]),
            tuple(tables["flags"][found["flags"][row]]),
        )


def value_from(at, tables, op, length):
    if at < 0:
        return None
    flat = tables["value"][at]
    if len(flat) == 1:
        return tables["name"][flat[0]] if op == "write" else ((tables["name"][flat[0]], length),)
    return tuple((tables["name"][name], length) for name, length in zip(flat[::2], flat[1::2], strict=True))


def test_an_id_that_a_script_would_round_is_kept_as_text():
    history = history_of(write("a", EXACT_MAX + 2, 0, 1, "w1"))
    assert columns(history)["id"] == [str(EXACT_MAX + 2)]


@pytest.mark.parametrize(
    "history",
    [
        history_of(size=EXACT_MAX + 1),
        history_of(write("a", 1, 0, 1, "w1"), write("a", 2, EXACT_MAX, EXACT_MAX + 1, "w2")),
    ],
)
def test_numbers_that_a_script_would_round_are_refused(history):
    with pytest.raises(UsageError, match="at most"):
        columns(history)


def test_clients_are_in_the_order_of_their_numbers():
    history = history_of(*(write(f"c{number}", 1, 0, 1, f"w{number}") for number in (10, 9, 100)))
    assert columns(history)["tables"]["client"] == ["c9", "c10", "c100"]


def test_all_kinds_of_request_have_a_place_in_the_table():
    assert columns(history_of())["tables"]["op"] == list(OPS)


# A counterexample of the explorer.


def test_a_replay_is_shown_with_the_lines_that_the_explorer_prints():
    question, moves = parse_replay(REPLAY)
    machine = Machine(question)
    printed = shown_columns(machine, play(machine, moves)).splitlines()[1:]
    picture = picture_of(REPLAY)
    assert [step.text for step in picture.steps] == [line.strip() for line in printed]
    assert [step.at for step in picture.steps] == list(range(1, len(printed) + 1))


def test_what_a_device_holds_in_the_end_is_shown_as_a_read_of_it():
    picture = picture_of(REPLAY)
    last = picture.history.operation(len(picture.history) - 1)
    assert (last.op, last.value) == ("read", (("B1", 512), (BASE, 65024)))
    assert picture.finding.verdict == NOT_LINEARIZABLE
    assert picture.finding.partials[0].refused[0].why == "it returned base, where B1 would be"


def test_a_schedule_with_which_nothing_is_wrong_is_not_called_linearizable():
    """One schedule of many says nothing of the others."""
    assert picture_of(HARMLESS).finding.verdict == NOT_CHECKED


# (subject, program, initial states, how many operations may fail)
SCHEDULES = [
    ("overlay", "write 0+512 | read 0+64K ; trim 0+64K", "N", 1),
    ("overlay", "zero 0+64K | status 0+128K | cache 0+512", "TA", 0),
    ("overlay-with-lock", "write 0+512 | flush", "N", 0),
    ("overlay-served", "write 0+512 | read 0+64K", "A", 1),
    ("lock-alone", "write 0+64K | write 0+64K", "N", 0),
    ("bitmap-lock-two-bits", "read 0+64K | write 64K+512", "NN", 0),
]


@pytest.mark.parametrize(("subject", "program", "initial", "faults"), SCHEDULES, ids=[each[0] for each in SCHEDULES])
@given(data=st.data())
def test_any_schedule_of_any_subject_can_be_shown(subject, program, initial, faults, data):
    question = Question(
        KINDS[subject], make_program(parse_program(program), initial), "request", Modes(True, True), faults
    )
    machine = Machine(question)
    moves, state = [], machine.first
    while ways := list(ways_on(machine, state)):
        move, state, wrong = data.draw(st.sampled_from(ways))
        moves.append(move)
        if wrong:
            break
    replay = format_replay(question, moves)
    picture = picture_of(replay)
    told = data_in(page(picture))
    printed = shown_columns(machine, play(machine, moves)).splitlines()[1:]
    assert told["steps"]["text"] == [line.strip() for line in printed]
    assert len(told["requests"]["op"]) >= len({step.request for step in picture.steps})
    assert (picture.finding.verdict == NOT_LINEARIZABLE) == bool(play(machine, moves).wrong)


def ways_on(machine, state):
    """Each move that can be made now, the state after it, and what is wrong then."""
    world, places, monitor = state
    for client, place in enumerate(places):
        for choice, step in enumerate(() if place == DONE else machine.steps(world, place)):
            after, wrong = machine.judged(monitor, step.events)
            node = machine.after(client, place, step.node)
            new = (step.world, (*places[:client], node, *places[client + 1 :]), after)
            yield (client, choice), new, wrong or step.wrong


# The command.


@pytest.fixture
def history_file(tmp_path):
    path = tmp_path / "history.jsonl"
    save(linearizable(20)[0], path)
    return path


def view(*arguments, status=0):
    return run(sys.executable, "-m", "check.view", *arguments, status=status)


def test_a_file_becomes_a_page(history_file, tmp_path):
    view(history_file, "-o", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(data_in(text)["requests"]["op"]) == 20
    assert data_in(text)["verdict"] == LINEARIZABLE
    assert text == view(history_file, "-o", "-")
    assert text != view(history_file, "--level", "sector", "-o", "-")


def test_a_page_without_a_verdict_says_so(history_file):
    assert data_in(view(history_file, "--no-check", "-o", "-"))["verdict"] == NOT_CHECKED


def test_a_replay_becomes_a_page():
    assert data_in(view("--replay", REPLAY, "-o", "-"))["unit"] == "step"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["FILE", "--replay", REPLAY],
        ["--replay", REPLAY, "--level", "block"],
        ["--replay", "nonsense"],
        ["FILE", "--level", "disk"],
        ["missing.jsonl"],
        [ROOT / "README.md"],
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_status_2(history_file, arguments):
    view(*(history_file if each == "FILE" else each for each in arguments), status=2)


def test_a_line_that_is_wrong_is_named(history_file, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(history_file.read_text() + "not JSON\n")
    with pytest.raises(AssertionError, match="line 42"):
        view(broken)


def test_a_page_that_cannot_be_written_is_status_1(history_file, tmp_path):
    view(history_file, "-o", tmp_path / "missing" / "page.html", status=1)


# In a browser.

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH_PX, HEIGHT_PX = 1280, 800


@pytest.fixture(scope="module")
def chromium():
    """A browser with no past. It is driven over the network, which says nothing of the pages: they are watched."""
    binary, driver = need("chromium", "chromium"), need("chromedriver", "chromium-driver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ModuleNotFoundError:
        refuse("selenium is missing: pip install 'cowproof[test]'")
    with tempfile.TemporaryDirectory(prefix="cowproof-test-", ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options, Service(driver))
        metrics = {"width": WIDTH_PX, "height": HEIGHT_PX, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get("about:blank")  # the first page of a new browser fetches much of its own
        yield browser
        browser.quit()


class Shown:
    """A page in the browser, asked and touched as by a user; it must neither complain nor fetch anything."""

    def __init__(self, browser, folder):
        self.browser = browser
        self._folder = folder

    def open(self, picture):
        path = self._folder / "page.html"
        path.write_text(page(picture), encoding="utf-8")
        self.drain()
        self.browser.get(path.as_uri())
        self.picture = picture
        return self

    def ask(self, what, *arguments):
        """What `window.cowproof` says, of what is drawn now."""
        return self.browser.execute_script(f"cowproof.draw(); return cowproof.{what}(...arguments)", *arguments)

    def element(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, selector):
        return self.element(selector).text

    def click(self, x, y):
        """On the timeline, in its own pixels."""
        self.actions().move_to_element_with_offset(self.canvas(), *self.from_middle(x, y)).click().perform()

    def click_on(self, request):
        rect = self.ask("getRect", request)
        right = min(rect["x"] + rect["width"], self.canvas().size["width"] - 2)
        left = max(rect["x"], self.ask("getView")["left"])
        self.click((left + right) / 2, rect["y"] + rect["height"] / 2)

    def drag(self, by_x):
        actions = self.actions().move_to_element_with_offset(self.canvas(), 0, 0).click_and_hold()
        actions.move_by_offset(by_x, 0).release().perform()

    def wheel(self, x, delta):
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

        origin = ScrollOrigin.from_element(self.canvas(), *self.from_middle(x, self.canvas().size["height"] / 2))
        self.actions().scroll_from_origin(origin, 0, delta).perform()

    def press(self, *keys):
        self.actions().send_keys(*keys).perform()

    def choose(self, selector, value):
        from selenium.webdriver.support.select import Select

        Select(self.element(selector)).select_by_value(str(value))

    def search(self, text):
        box = self.element("#search")
        box.clear()
        box.send_keys(text)

    def actions(self):
        from selenium.webdriver import ActionChains

        return ActionChains(self.browser, duration=0)

    def canvas(self):
        return self.element("#timeline")

    def from_middle(self, x, y):
        size = self.canvas().size
        return round(x - size["width"] / 2), round(y - size["height"] / 2)

    def drain(self):
        """What the browser has complained of, and what it has asked a network for, since this was last called."""
        complaints = [entry["message"] for entry in self.browser.get_log("browser")]
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        fetched = [
            each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"
        ]
        return complaints, fetched


@pytest.fixture
def shown(chromium, tmp_path):
    """Opens a page; at the end, nothing has been fetched but it, and nobody has complained."""
    page_shown = Shown(chromium, tmp_path)
    yield page_shown
    complaints, fetched = page_shown.drain()
    emulate(chromium, "light")
    assert complaints == []
    assert set(fetched) <= {(tmp_path / "page.html").as_uri()}


def emulate(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture
def conflict_page(shown, lost):
    return shown.open(lost[0])


@pytest.fixture
def fine_page(shown):
    return shown.open(Picture("fine.jsonl", *linearizable(400)))


def name_of(picture, request):
    return f"{picture.history.client[request]} #{picture.history.id[request]}"


def test_a_page_opens_at_the_conflict_with_all_of_it_in_view(conflict_page):
    finding = conflict_page.picture.finding
    assert conflict_page.ask("getShown") == around(conflict_page.picture.history, finding)
    assert set(finding.conflict) <= set(conflict_page.ask("getVisible"))
    assert conflict_page.text("#verdict") == NOT_LINEARIZABLE
    assert conflict_page.text("#words") == finding.words


def test_what_stands_in_the_way_of_the_longest_order_is_selected_at_first(conflict_page):
    partial = conflict_page.picture.finding.partials[0]
    assert conflict_page.ask("getSelected") == partial.refused[0].request
    assert conflict_page.ask("getOrder") == list(partial.requests)
    assert partial.refused[0].why in conflict_page.text("#selected")


def test_what_is_clicked_is_what_is_shown(conflict_page):
    history = conflict_page.picture.history
    for request in conflict_page.ask("getVisible"):
        conflict_page.click_on(request)
        assert conflict_page.ask("getSelected") == request
        said = conflict_page.text("#selected")
        assert name_of(conflict_page.picture, request) in said
        assert f"{history.offset[request]:,}" in said
        assert f"{history.length[request]:,}" in said
        assert (history.outcome[request] if history.outcome[request] != PENDING else "never answered") in said
        for name in dict(history.value[request]) if isinstance(history.value[request], tuple) else ():
            assert name in said


def test_bars_that_are_in_flight_side_by_side_do_not_cover_each_other(shown):
    shown.open(Picture("x", *linearizable(60, clients=2, in_flight=4)))
    rects = [shown.ask("getRect", request) for request in shown.ask("getVisible")]
    for at, one in enumerate(rects):
        for other in rects[at + 1 :]:
            beside = one["x"] + one["width"] <= other["x"] + 0.01 or other["x"] + other["width"] <= one["x"] + 0.01
            below = abs(one["y"] - other["y"]) >= min(one["height"], other["height"])
            assert beside or below


def test_bars_stand_in_the_order_of_their_times(fine_page):
    history = fine_page.picture.history
    lefts = sorted(
        (history.call[request], fine_page.ask("getRect", request)["x"]) for request in fine_page.ask("getVisible")
    )
    assert [x for _, x in lefts] == sorted(x for _, x in lefts)


def test_points_are_inside_of_their_bars_and_follow_each_other(fine_page):
    order = fine_page.ask("getOrder")
    assert tuple(order) == fine_page.picture.finding.chains[0].requests
    found = [fine_page.ask("getPoint", request) for request in order[:40]]
    assert found == sorted(found)
    for request, point in zip(order[:40], found, strict=True):
        rect = fine_page.ask("getRect", request)
        assert rect["x"] - 2 <= point <= rect["x"] + rect["width"] + 2


def test_a_click_beside_all_bars_selects_nothing(conflict_page):
    conflict_page.click(conflict_page.canvas().size["width"] - 2, conflict_page.canvas().size["height"] - 2)
    assert conflict_page.ask("getSelected") == -1


def test_a_click_in_the_table_selects_and_a_selection_marks_the_table(conflict_page):
    for request in conflict_page.picture.finding.conflict:
        conflict_page.element(f'tr[data-request="{request}"]').click()
        assert conflict_page.ask("getSelected") == request
        assert conflict_page.element("tr[aria-current]").get_attribute("data-request") == str(request)


def test_zooming_by_the_wheel_leaves_what_is_under_the_pointer_where_it_is(fine_page):
    request = fine_page.ask("getVisible")[10]
    before, rect = fine_page.ask("getView"), fine_page.ask("getRect", request)
    fine_page.wheel(rect["x"], -300)
    after = fine_page.ask("getView")
    assert after["to"] - after["from"] < before["to"] - before["from"]
    assert fine_page.ask("getRect", request)["x"] == pytest.approx(rect["x"], abs=2)


def test_plus_and_minus_zoom_and_undo_each_other(fine_page):
    before = fine_page.ask("getView")
    fine_page.press("+")
    inside = fine_page.ask("getView")
    assert inside["to"] - inside["from"] == pytest.approx((before["to"] - before["from"]) / 1.5)
    fine_page.press("-")
    assert fine_page.ask("getView")["from"] == pytest.approx(before["from"], abs=1e-6)


def test_dragging_moves_the_picture_with_the_pointer(fine_page):
    fine_page.press("+", "+")
    request = fine_page.ask("getVisible")[0]
    before = fine_page.ask("getRect", request)["x"]
    fine_page.drag(-120)
    assert fine_page.ask("getRect", request)["x"] == pytest.approx(before - 120, abs=2)
    assert fine_page.ask("getSelected") == -1


def test_arrows_pan(fine_page):
    from selenium.webdriver import Keys

    before = fine_page.ask("getView")
    fine_page.press(Keys.ARROW_RIGHT)
    assert fine_page.ask("getView")["from"] > before["from"]
    fine_page.press(Keys.ARROW_LEFT)
    assert fine_page.ask("getView")["from"] == pytest.approx(before["from"])


def test_the_keyboard_goes_through_all_requests_in_the_order_of_their_invocation(fine_page):
    from selenium.webdriver import Keys

    shown_order = fine_page.ask("getShown")
    fine_page.press(Keys.HOME)
    assert fine_page.ask("getSelected") == shown_order[0]
    fine_page.press("n", "n", "p")
    assert fine_page.ask("getSelected") == shown_order[1]
    fine_page.press(Keys.END)
    assert fine_page.ask("getSelected") == shown_order[-1]
    assert shown_order[-1] in fine_page.ask("getVisible")
    assert name_of(fine_page.picture, shown_order[-1]) in fine_page.text("#selected")
    fine_page.press(Keys.ESCAPE)
    assert fine_page.ask("getSelected") == -1


# (what is typed, what a request has to be)
SEARCHES = [
    ("r1", lambda each: each.op == "read" and each.id == 1),
    ("w14", lambda each: names_in(each.value) & {"w14"}),
    ("value:w14", lambda each: names_in(each.value) & {"w14"}),
    ("id:17", lambda each: each.id == 17),
    ("trim", lambda each: each.op == "trim"),
    ("offset:64K", lambda each: each.offset <= 65536 < each.offset + each.length),
    (
        "block:1 op:write",
        lambda each: each.op == "write" and each.offset < 2 * BLOCK and each.offset + each.length > BLOCK,
    ),
    ("nothing-like-this", lambda each: False),
]


def names_in(value):
    return {value} if isinstance(value, str) else {name for name, _ in value or ()}


@pytest.mark.parametrize(("text", "holds"), SEARCHES, ids=[text for text, _ in SEARCHES])
def test_a_search_finds_just_the_requests_that_are_meant(fine_page, text, holds):
    from selenium.webdriver import Keys

    expected = [index for index, each in enumerate(fine_page.picture.history) if holds(each)]
    fine_page.search(text)
    assert fine_page.ask("getMatches") == expected
    assert fine_page.text("#found") == (f"{len(expected)} found" if expected else "not found")
    fine_page.press(Keys.ENTER)
    if expected:
        assert fine_page.ask("getSelected") == expected[0]
        assert expected[0] in fine_page.ask("getVisible")
        assert fine_page.text("#found") == f"1 of {len(expected)}"


def test_what_is_found_beyond_the_crop_is_shown(conflict_page):
    from selenium.webdriver import Keys

    history = conflict_page.picture.history
    elsewhere = next(index for index in range(len(history)) if index not in conflict_page.ask("getShown"))
    conflict_page.press("/")
    conflict_page.press(f"id:{history.id[elsewhere]}", Keys.ENTER)
    assert conflict_page.ask("getSelected") == elsewhere
    assert elsewhere in conflict_page.ask("getVisible")
    conflict_page.press(Keys.ESCAPE)
    conflict_page.press("v")
    assert set(conflict_page.picture.finding.conflict) <= set(conflict_page.ask("getVisible"))


def test_the_filters_leave_what_is_of_a_client_and_a_block(fine_page):
    history = fine_page.picture.history
    clients = data_in(page(fine_page.picture))["requests"]["tables"]["client"]
    fine_page.choose("#client", clients.index("client 3"))
    fine_page.choose("#block", 2)
    expected = [
        index
        for index, each in enumerate(history)
        if each.client == "client 3" and each.offset < 3 * BLOCK and each.offset + each.length > 2 * BLOCK
    ]
    assert fine_page.ask("getShown") == expected
    fine_page.choose("#client", -1)
    fine_page.choose("#block", -1)
    assert len(fine_page.ask("getShown")) == len(history)


def test_blocks_have_colours_of_their_own_and_requests_too(fine_page):
    history = fine_page.picture.history
    by_block = {history.offset[each] // BLOCK: fine_page.ask("getColour", each) for each in range(60)}
    assert len(set(by_block.values())) == len(by_block) == 4
    fine_page.choose("#colour", "op")
    by_op = {history.op[each]: fine_page.ask("getColour", each) for each in range(60)}
    assert len(set(by_op.values())) == len(by_op) > 2


def test_true_time_gives_each_request_the_width_of_what_it_took(fine_page):
    fine_page.press("t")
    assert fine_page.ask("getView")["mode"] == "time"
    history, view_ = fine_page.picture.history, fine_page.ask("getView")
    first, second = fine_page.ask("getVisible")[5:7]
    rects = [fine_page.ask("getRect", each) for each in (first, second)]
    per_ns = (rects[1]["x"] - rects[0]["x"]) / (history.call[second] - history.call[first])
    assert rects[0]["width"] == pytest.approx((history.ret[first] - history.call[first]) * per_ns, abs=2)
    assert view_["to"] > view_["from"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_the_colours_of_the_system_until_the_user_asks_for_others(conflict_page, scheme):
    emulate(conflict_page.browser, scheme)
    other = {"light": "dark", "dark": "light"}[scheme]
    assert conflict_page.ask("getTheme") == scheme
    first = pixel(conflict_page)
    conflict_page.element("#theme").click()
    assert conflict_page.ask("getTheme") == other
    assert (pixel(conflict_page) > first) == (other == "light")
    conflict_page.press("d")
    assert conflict_page.ask("getTheme") == scheme
    assert pixel(conflict_page) == first


def pixel(page_shown):
    """What colour the timeline has where nothing stands. A copy is looked at: reading from a canvas makes it slow."""
    page_shown.ask("getView")
    return page_shown.browser.execute_script("""
        const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        copy.drawImage(document.getElementById("timeline"), 0, 0);
        return [...copy.getImageData(3, 3, 1, 1).data];
    """)


# (text, what it stands on): names of the style's variables
READABLE = [
    ("text", "surface"),
    ("text", "page"),
    ("text", "danger-soft"),
    ("text", "accent-soft"),
    ("muted", "surface"),
    ("muted", "page"),
    ("muted", "danger-soft"),
    ("danger", "surface"),
    ("danger", "danger-soft"),
    ("danger", "page"),
    ("ok", "ok-soft"),
    ("warn", "warn-soft"),
    ("accent", "accent-soft"),
]
STYLE = (ROOT / "check/view/viewer.css").read_text(encoding="utf-8")


def themes():
    """The variables of light, of dark by the system, of dark by choice."""
    return [dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root[^{]*\{([^}]*)\}", STYLE)]


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("text", "ground"), READABLE)
def test_text_stands_out_from_what_it_stands_on(text, ground):
    for theme in themes():
        dark, light = sorted((luminance(theme[text]), luminance(theme[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground, theme[text])


def test_dark_is_the_same_by_choice_and_by_the_system():
    _, by_system, by_choice = themes()
    assert by_system == by_choice


def test_each_step_of_a_counterexample_can_be_clicked_and_is_told(shown):
    picture = picture_of(REPLAY)
    shown.open(picture)
    for at, step in enumerate(picture.steps):
        rect = shown.ask("getStepRect", at)
        shown.click(rect["x"] + rect["width"] / 2, rect["y"] + rect["height"] / 2)
        assert shown.ask("getStep") == at
        assert shown.ask("getSelected") == step.request
        assert step.text in shown.text("#selected")
        assert shown.element("tr[data-step][aria-current]").get_attribute("data-step") == str(at)


def test_steps_stand_within_their_requests_in_the_order_in_which_they_were_made(shown):
    picture = picture_of(REPLAY)
    shown.open(picture)
    rects = [shown.ask("getStepRect", at) for at in range(len(picture.steps))]
    assert [each["x"] for each in rects] == sorted(each["x"] for each in rects)
    for step, rect in zip(picture.steps, rects, strict=True):
        bar = shown.ask("getRect", step.request)
        assert bar["x"] <= rect["x"] + rect["width"] / 2 <= bar["x"] + bar["width"]


def test_a_circle_is_drawn_and_explained(shown):
    shown.open(Picture("circle", TORN_REQUEST, finding(TORN_REQUEST, "request")))
    assert shown.element("#legend-edge").is_displayed()
    shown.click_on(1)
    assert "Before a #1: r2 returned base at 4096, which w1 overwrites." in shown.text("#selected")


def test_each_part_of_the_device_has_an_order_to_choose(shown):
    history, _ = simulated(100)
    found = finding(history, "sector")
    shown.open(Picture("parts", history, found))
    for at in (0, len(found.chains) - 1):
        shown.choose("#order", at)
        assert shown.ask("getOrder") == list(found.chains[at].requests)
    shown.choose("#order", -1)
    assert shown.ask("getOrder") == []
    shown.choose("#block", 1)
    assert BLOCK <= found.chains[int(shown.element("#order").get_attribute("value"))].range.offset < 2 * BLOCK


def test_what_is_selected_is_told_to_who_cannot_see_it(conflict_page):
    assert conflict_page.element("#selected").get_attribute("aria-live") == "polite"
    assert conflict_page.canvas().get_attribute("aria-label")
    for button in conflict_page.browser.find_elements("css selector", "button"):
        assert (button.get_attribute("textContent") or button.get_attribute("aria-label")).strip()


def test_no_value_is_run(shown):
    shown.open(hostile_picture())
    shown.click_on(0)
    assert shown.ask("getSelected") == 0
    assert HOSTILE in shown.text("#selected")
    assert shown.browser.title != "taken"


def test_an_empty_history_is_a_page_too(shown):
    shown.open(Picture("empty", history_of(), Finding(NOT_CHECKED, "request", "Nothing happened.")))
    assert shown.ask("getVisible") == []
    assert shown.element("#nothing").is_displayed()


def test_without_a_script_the_verdict_is_read(shown, lost):
    shown.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        shown.open(lost[0])
        body = shown.browser.find_element("css selector", "body").text
    finally:
        shown.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert NOT_LINEARIZABLE in body
    assert lost[0].finding.words in body
    assert "does not run here" in body


def test_a_page_of_a_hundred_thousand_requests_opens_and_answers_a_click(shown):
    shown.open(Picture("large", *linearizable(100_000, clients=16, blocks=64, in_flight=4)))
    assert len(shown.ask("getShown")) == 100_000
    request = shown.ask("getVisible")[20]
    shown.click_on(request)
    assert shown.ask("getSelected") == request
    shown.press("0")
    for each in shown.ask("getVisible")[:20000:2000]:
        shown.click_on(each)
        selected = shown.ask("getRect", shown.ask("getSelected"))
        assert selected["x"] == pytest.approx(shown.ask("getRect", each)["x"], abs=3)
    shown.search("id:99999")
    shown.press("\ue007")
    found = shown.ask("getSelected")
    assert shown.picture.history.id[found] == 99_999
    assert found in shown.ask("getVisible")
    shown.click_on(found)
    assert shown.ask("getSelected") == found
