"""The command line: what it refuses and how it says so, what it prints, runs, and leaves behind.

Source:  docs of the options; nbdkit-captive(1) for --run; sd_listen_fds(3) for socket activation.
"""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from raw_nbd import DISC, READ, WRITE, RawClient, hello, receive, request, take_reply
from servers import (
    CLIENT_LIMIT_S,
    END_LIMIT_S,
    KIB,
    MIB,
    ROOT,
    SERVER,
    START_LIMIT_S,
    eventually,
    libnbd,
    need,
    run,
)

from impl.server.command import CLIENTS, missing_clients
from impl.server.listeners import why_not_bound

pytestmark = pytest.mark.timeout(120)

STOPPED, COULD_NOT_SERVE, WRONG_USAGE = 0, 1, 2
COWPROOF = [SERVER[0], "-c", "from impl.cli import main; main()"]


def end_of(command, env=None, limit_s=CLIENT_LIMIT_S, **options):
    """A command that ends by itself: its exit status, standard output and standard error."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=limit_s,
        check=False,
        text=True,
        errors="replace",
        **options,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_client_may_write_what_is_not_text():
    """As nbdinfo does on a machine without file(1)."""
    assert run("printf", r"content: \377\n") == "content: \N{REPLACEMENT CHARACTER}\n"


# What is refused


@dataclass
class Refused:
    """A command line, the exit status it has to end with, and what its one line has to contain."""

    arguments: list[str]
    status: int
    says: str
    env: dict[str, str] = field(default_factory=dict)


# {place} is a folder that holds what the fixture `place` puts there.
U = ["-U", "{place}/s"]
REFUSED = {
    "a base that is missing": Refused([*U, "{place}/none.img"], 1, "{place}/none.img"),
    "a base that is a folder": Refused([*U, "{place}/folder"], 1, "{place}/folder"),
    "a base that is a pipe": Refused([*U, "{place}/pipe"], 1, "{place}/pipe"),
    "a base that is a device of characters": Refused([*U, "/dev/null"], 1, "/dev/null"),
    "a base that is empty": Refused([*U, "{place}/empty.img"], 1, "{place}/empty.img"),
    "a base without a name": Refused([*U, ""], 2, "''"),
    "two bases": Refused([*U, "{place}/base.img", "{place}/other.img"], 2, "NAME={place}/base.img"),
    "a scheme that is unknown": Refused([*U, "gopher://host/disk"], 2, "gopher"),
    "memory of no size": Refused([*U, "memory:0"], 2, "'0'"),
    "memory of a size that is none": Refused([*U, "memory:lots"], 2, "lots"),
    "memory with a parameter": Refused([*U, "memory:1M?seed=1"], 2, "seed=1"),
    "memory of more than there are addresses": Refused([*U, "memory:7E"], 1, "--cow-block-size"),
    "a pattern's unknown parameter": Refused([*U, "pattern:1M?colour=red"], 2, "colour=red"),
    "a pattern's latency without a unit": Refused([*U, "pattern:1M?latency=10"], 2, "'10'"),
    "a block size that is no power of two": Refused([*U, "--cow-block-size", "3000"], 2, "3000"),
    "a block size that is too small": Refused([*U, "--cow-block-size", "2K"], 2, "2K"),
    "a block size that is too large": Refused([*U, "--cow-block-size", "4G"], 2, "4G"),
    "a block size that is no size": Refused([*U, "--cow-block-size", "nonsense"], 2, "nonsense"),
    "an unknown option": Refused([*U, "--frobnicate"], 2, "--frobnicate"),
    "an option without its value": Refused(["--unix"], 2, "--unix"),
    "no threads": Refused([*U, "-t", "0"], 2, "'0': expected a number from 1 to 1024"),
    "threads that are no number": Refused([*U, "-t", "abc"], 2, "'abc': expected a number from 1 to 1024"),
    "a port that is too large": Refused(["-p", "99999"], 2, "'99999': expected a number from 0 to 65535"),
    "a port that is too small": Refused(["-p", "-1"], 2, "'-1': expected a number from 0 to 65535"),
    "a port that is no number": Refused(["-p", "abc"], 2, "'abc': expected a number from 0 to 65535"),
    "a port that is far too large": Refused(["-p", "9" * 5000], 2, "expected a number from 0 to 65535"),
    "a port that is taken": Refused(["-i", "127.0.0.1", "-p", "{port}"], 1, "port {port}: Address already in use; cho"),
    "an address without a name": Refused(["-i", ""], 2, "--ipaddr '': expected"),
    "an address that is none": Refused(["-i", "256.1.1.1", "-p", "0"], 1, "256.1.1.1"),
    "an address of another machine": Refused(["-i", "192.0.2.1", "-p", "0"], 1, "192.0.2.1"),
    "a Unix socket and a port": Refused([*U, "-p", "0"], 2, "--unix"),
    "a Unix socket and an address": Refused([*U, "-i", "127.0.0.1"], 2, "--unix"),
    "standard input and a Unix socket": Refused([*U, "-s"], 2, "--stdio"),
    "standard input and a command": Refused(["-s", "--run", "true"], 2, "--run"),
    "a Unix socket without a name": Refused(["-U", ""], 2, "--unix"),
    "a Unix socket that a server uses": Refused(["-U", "{place}/living"], 1, "choose another path with --unix"),
    "a Unix socket where a file is": Refused(["-U", "{place}/base.img"], 1, "{place}/base.img"),
    "a Unix socket where a folder is": Refused(["-U", "{place}/folder"], 1, "{place}/folder"),
    "a Unix socket in a folder that is missing": Refused(
        ["-U", "{place}/none/s"], 1, "{place}/none/s: there is no folder {place}/none\n"
    ),
    "a Unix socket whose path is too long": Refused(["-U", "/tmp/" + "x" * 103], 1, "107"),
    "a Unix socket whose name has two lines": Refused(["-U", "{place}/none\n/s"], 1, "none"),
    "a pid file in a folder that is missing": Refused(
        [*U, "-P", "{place}/none/pid"], 1, "{place}/none/pid: there is no folder {place}/none\n"
    ),
    "a pid file without a name": Refused([*U, "-P", ""], 2, "--pidfile '': expected"),
    "a command that is none": Refused([*U, "--run", ""], 2, "--run '': expected"),
    "a pid file that is a folder": Refused([*U, "-P", "{place}/folder"], 1, "{place}/folder"),
    "a switch that is neither on nor off": Refused([*U, "--cow-on-read", "maybe"], 2, "maybe"),
    "a name that is too long": Refused([*U, "-e", "x" * 4097], 2, "4096"),
    "a name that is not UTF-8": Refused([*U, "-e", os.fsdecode(b"\xff")], 2, "--exportname '\\xff': expected UTF-8"),
    "memory without a size": Refused([*U, "memory"], 2, "expected memory:SIZE"),
    "a pattern without a size": Refused([*U, "pattern"], 2, "expected pattern:SIZE"),
    "an overlay in a file": Refused([*U, "--overlay", "{place}/overlay"], 2, "{place}/overlay"),
    "a folder for the overlay that is missing": Refused(
        [*U, "memory:1M"],
        1,
        "{place}/none: No such file or directory; set TMPDIR to a folder that",
        env={"TMPDIR": "{place}/none"},
    ),
    "a folder for the overlay that is a file": Refused(
        [*U, "memory:1M"],
        1,
        "{place}/base.img: Not a directory; set TMPDIR to a folder that",
        env={"TMPDIR": "{place}/base.img"},
    ),
    "a reserve larger than the disk": Refused([*U, "--overlay-reserve", "memory:90T"], 1, "cannot reserve 90T in /"),
    "a reserve larger than all memory": Refused(
        [*U, "--overlay-reserve", "--overlay", "memory", "memory:90T"], 1, "cannot reserve 90T in memory"
    ),
    "an overlay larger than a file can be": Refused(
        [*U, f"memory:{(1 << 63) - 1}", "--cow-block-size", "2G"], 1, "TMPDIR"
    ),
    "sockets that were not handed over": Refused(["memory:1M"], 1, "'many'", env={"LISTEN_FDS": "many"}),
}


@pytest.fixture
def place(short_path):
    """What the table speaks of."""
    (short_path / "folder").mkdir()
    (short_path / "empty.img").touch()
    (short_path / "base.img").write_bytes(b"base" * KIB)
    (short_path / "other.img").write_bytes(b"other" * KIB)
    os.mkfifo(short_path / "pipe")
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(short_path / "living"))
        living.listen()
        yield short_path


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_in_one_line(place, taken_port, what):
    refused = REFUSED[what]

    def fill(text):
        return text.replace("{place}", str(place)).replace("{port}", str(taken_port))

    env = {key: fill(value) for key, value in refused.env.items()}
    command = [*SERVER, *map(fill, refused.arguments)]
    if "LISTEN_FDS" in env:
        command = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
    before = sorted(os.listdir(place))
    status, out, err = end_of(command, env, limit_s=END_LIMIT_S)
    assert (status, out) == (refused.status, ""), err
    assert err.count("\n") == 1, err
    assert err.startswith("cowproof: "), err
    assert fill(refused.says) in err
    assert sorted(os.listdir(place)) == before, "it left something behind"


def test_a_base_that_may_not_be_read_is_refused_in_one_line(place):
    """Root may read anything, unless it gives that up."""
    without = []
    if os.geteuid() == 0:
        without = [need("setpriv", package="util-linux"), "--bounding-set=-dac_override,-dac_read_search"]
    (place / "base.img").chmod(0)
    status, _, err = end_of([*without, *SERVER, "-U", place / "s", place / "base.img"])
    assert (status, err) == (COULD_NOT_SERVE, f"cowproof: cannot open '{place}/base.img': Permission denied\n")


def test_a_port_that_is_not_for_everybody_is_refused_with_a_hint():
    """Which ports those are, a machine may have changed: so the kernel's answer is made up."""
    assert why_not_bound(OSError(errno.EACCES, "Permission denied")) == (
        "Permission denied; without privileges, choose one from 1024 with --port"
    )
    assert why_not_bound(OSError(errno.EADDRNOTAVAIL, "Cannot assign")) == "Cannot assign"


def test_without_any_folder_for_temporary_files_an_overlay_in_memory_is_served(short_path):
    """As in a container whose root is read-only: what is not needed is not made."""
    env = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "/dev/null")
    hide = (
        "import sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null'];"
        "from impl.server.command import main; main(sys.argv[1:])"
    )
    arguments = [SERVER[0], "-c", hide, "-s", "--overlay", "memory", "memory:1M"]
    assert end_of(arguments, env) == (STOPPED, GREETING, "")


# What is replaced, and what is not


def test_a_socket_that_a_killed_server_left_is_replaced(serve, small_base):
    server = serve(small_base)
    server.kill()
    assert server.socket.exists()
    second = subprocess.Popen(
        [*SERVER, "-U", server.socket, "-P", server.folder / "second", small_base],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually((server.folder / "second").exists, "the second server serves", START_LIMIT_S)
        with RawClient(server.socket) as client:
            assert client.size == small_base.stat().st_size
        second.terminate()
        assert second.wait(START_LIMIT_S) == STOPPED
        assert not server.socket.exists()
    finally:
        second.kill()
        second.wait()


def test_a_socket_that_is_not_ours_any_more_is_left(serve, small_base):
    """Somebody removed it, and another server has made a new one at the same path."""
    server = serve(small_base)
    server.socket.unlink()
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(server.socket))
        another.listen()
        assert server.stop() == STOPPED
        assert server.socket.exists(), "the server removed a socket that it had not made"


# Help, and options that are yet to come

OPTIONS = {
    *("--unix", "--ipaddr", "--port", "--exportname", "--readonly", "--threads", "--pidfile", "--run"),
    *("--exit-with-parent", "--cow-block-size", "--cow-on-read", "--cow-on-cache", "--overlay", "--overlay-reserve"),
    *("--record", "--tls", "--tls-certificates", "--tls-psk", "--tls-verify-peer", "--unix-mode", "--max-clients"),
    *("--stdio", "--verbose", "--help"),
}
SHORT_OPTIONS = {"-U", "-i", "-p", "-e", "-r", "-t", "-P", "-s", "-v", "-h"}
ABSENT = ["--metrics"]


def test_help_names_every_option_there_is_and_no_other():
    status, out, err = end_of([*SERVER, "--help"])
    assert (status, err) == (STOPPED, "")
    listed = [line.split("  ")[1] for line in out.splitlines() if re.match(r"  +-", line)]
    assert set(re.findall(r"(?<!\w)--[a-z-]+", " ".join(listed))) == OPTIONS
    assert set(re.findall(r"(?<![\w-])-[a-zA-Z]\b", " ".join(listed))) == SHORT_OPTIONS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", out)) <= OPTIONS
    assert "  --overlay memory  " in out, "an overlay in a file is yet to come"


HELP_SAYS = [
    *("Exit status:\n    0 ", "\n    1 ", "\n    2 ", "With --run, that of the command"),
    *("SIGTERM", "Ctrl-C", "LISTEN_FDS", "LISTEN_PID"),
    *("$uri", "$nbd", "$unixsocket", "$port", "$exportname", "K, M, G, T, P, E", "$TMPDIR"),
]


def test_help_says_how_it_ends_and_what_commands_are_given():
    out = end_of([*SERVER, "--help"])[1]
    assert [what for what in HELP_SAYS if what not in out] == []


def test_help_tells_the_default_of_every_option_that_has_one():
    options = end_of([*SERVER, "--help"], env={"COLUMNS": "200"})[1].split("\nOptions:")[1]
    for option in ("--ipaddr", "--port", "--threads", "--cow-block-size", "--cow-on-read", "--overlay memory"):
        line = next(line for line in re.split(r"\n(?=  -)", options) if option in line)
        assert re.search(r"[Dd]efault|without this", line), line


def test_the_examples_of_help_begin_with_the_name_that_was_typed():
    for name, command in (("cowproof serve", [*COWPROOF, "serve"]), ("python -m impl.server", SERVER)):
        out = end_of([*command, "--help"])[1]
        examples = out.split("Examples:\n")[1].split("\n\n")[0].splitlines()
        assert len(examples) == 5
        assert [
            example for example in examples if not example.startswith((f"  {name} ", f"  TMPDIR=/big {name} "))
        ] == []


def test_without_click_one_line_says_what_to_type():
    """As with the system's Python in a new checkout: -S leaves out what is installed."""
    status, out, err = end_of([SERVER[0], "-S", "-m", "impl.server"])
    assert (status, out, err.count("\n")) == (COULD_NOT_SERVE, "", 1), err
    assert "type: make serve" in err


@pytest.mark.parametrize("option", ABSENT)
def test_an_option_that_does_not_exist_is_refused(short_path, option):
    status, _, err = end_of([*SERVER, "-U", short_path / "s", f"{option}=x"])
    assert (status, err.count("\n")) == (WRONG_USAGE, 1)
    assert option in err


def test_cowproof_serve_is_the_same_command():
    """But for its name, which each gives as it was typed."""
    for arguments, status in ((["--help"], STOPPED), (["memory:0"], WRONG_USAGE), (["-p", "x"], WRONG_USAGE)):
        found_status, *said = end_of([*COWPROOF, "serve", *arguments])
        other_status, *other_said = end_of([*SERVER, *arguments])
        assert (found_status, other_status) == (status, status)
        renamed = [text.replace("python -m impl.server", "cowproof serve").split() for text in other_said]
        assert [text.split() for text in said] == renamed


def test_cowproof_alone_shows_its_help_as_it_is():
    status, out, err = end_of(COWPROOF)
    assert (status, out) == (WRONG_USAGE, "")
    assert err == end_of([*COWPROOF, "--help"])[1]
    assert err.count("\n") > 5


@pytest.mark.parametrize("arguments", [["serve", "memory:0"], ["serve", "-p", "x"], ["serve", "--frobnicate"]])
def test_who_misuses_a_command_is_told_of_that_commands_help(arguments):
    assert end_of([*COWPROOF, *arguments])[2].endswith(" (try cowproof serve --help)\n")


def test_cowproof_tells_its_version_even_from_a_checkout():
    declared = re.search(r'^__version__ = "(.*)"$', (ROOT / "impl" / "__init__.py").read_text(), re.MULTILINE)
    status, out, err = end_of([*COWPROOF, "--version"])
    assert (status, err) == (STOPPED, "")
    assert declared[1] in out


def test_nothing_is_said_that_was_not_asked_for(serve, small_base):
    """One line that announces; clients that come, ask and go are told of with -v."""
    nbdinfo = need("nbdinfo", package="libnbd-bin")
    quiet, talkative = serve(small_base), serve(small_base, "-v")
    for server in (quiet, talkative):
        run(nbdinfo, server.uri)
        assert server.stop() == STOPPED
    assert quiet.stderr == f"cowproof: serving {small_base} (2M) at {quiet.uri}\n"
    assert talkative.stderr.count("\n") > 3, talkative.stderr
    assert talkative.stderr.count(": gone") == talkative.stderr.count(": opened"), talkative.stderr


def test_newcomers_are_told_what_to_try_and_it_works(serve):
    for program, package in (("nbdinfo", "libnbd-bin"), ("nbdcopy", "libnbd-bin"), ("qemu-io", "qemu-utils")):
        need(program, package)
    server = serve(None)
    eventually(lambda: "Ctrl-C" in server.stderr, "all of it is said")
    commands = [line for line in server.stderr.splitlines() if line.startswith("  ")]
    assert len(commands) == 3
    shown = [run("sh", "-c", command) for command in commands]
    assert "COWPROOF: a disk to try things on" in shown[1]


# (programs that are there, what the line says)
FOUND = [
    ({"nbdinfo", "nbdcopy", "qemu-io"}, []),
    ({"nbdinfo", "nbdcopy"}, ["Not found here: qemu-io; on Debian, type: sudo apt-get install qemu-utils"]),
    ({"qemu-io"}, ["Not found here: nbdinfo, nbdcopy; on Debian, type: sudo apt-get install libnbd-bin"]),
    (set(), ["Not found here: nbdinfo, nbdcopy, qemu-io; on Debian, type: sudo apt-get install libnbd-bin qemu-utils"]),
]


@pytest.mark.parametrize(("there", "line"), FOUND)
def test_newcomers_who_lack_a_client_are_told_its_package(there, line):
    assert missing_clients(lambda client: client if client in there else None) == line


def test_newcomers_are_told_to_try_nothing_that_is_not_in_those_packages_or_on_every_machine(serve):
    server = serve(None)
    eventually(lambda: "Ctrl-C" in server.stderr, "all of it is said")
    commands = [line.split() for line in server.stderr.splitlines() if line.startswith("  ")]
    programs = {word for words in commands for before, word in zip(["|", *words], words, strict=False) if before == "|"}
    assert programs == {*CLIENTS, "grep", "head"}


# Standard descriptors


def in_a_shell(redirected, *command):
    """The command, with descriptors redirected as a shell does it."""
    return ["bash", "-c", f'"$@" {redirected}', "bash", *map(str, command)]


@pytest.mark.parametrize("ask", [["serve", "--help"], ["--version"]], ids=" ".join)
def test_output_that_cannot_be_written_is_told_in_one_line(ask):
    full = "cowproof: cannot write to standard output: No space left on device\n"
    assert end_of(in_a_shell(">/dev/full", *COWPROOF, *ask)) == (COULD_NOT_SERVE, "", full)


@pytest.mark.parametrize("ask", [["serve", "--help"], []], ids=" ".join)
def test_who_has_read_enough_is_told_nothing(short_path, ask):
    """A pipe that nobody reads, as behind a head(1) that has ended."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        status, _, err = end_of(in_a_shell(f">&{write_end} 2>{short_path}/err", *COWPROOF, *ask), pass_fds=[write_end])
    finally:
        os.close(write_end)
    said = (short_path / "err").read_text()
    assert (status, err, "Error" in said) == ((COULD_NOT_SERVE if ask else WRONG_USAGE), "", False)


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", ">&- 2>&- <&-"])
def test_the_exit_status_says_it_although_nothing_else_can(where):
    assert end_of(in_a_shell(where, *COWPROOF, "serve", "memory:0")) == (WRONG_USAGE, "", "")
    assert end_of(in_a_shell(where, *SERVER, "--run", "exit 7", "memory:1M")) == (7, "", "")


def test_a_closed_descriptor_is_not_taken_for_a_file_of_ours(short_path, small_base):
    """Else the command would have the disk as its standard input, and messages would go into the overlay."""
    show = f"readlink /proc/$PPID/fd/0 /proc/$PPID/fd/1 /proc/$PPID/fd/2 /proc/self/fd/0 > {short_path}/shown"
    assert end_of(in_a_shell("<&- >&- 2>&-", *SERVER, "--run", show, small_base)) == (STOPPED, "", "")
    assert (short_path / "shown").read_text().split() == ["/dev/null"] * 4


@pytest.mark.parametrize(("closed", "name"), [("<&-", "input"), (">&-", "output")])
def test_a_client_cannot_be_on_a_closed_descriptor(closed, name):
    status, out, err = end_of(in_a_shell(closed, *SERVER, "-s", "memory:1M"))
    assert (status, out, err.count("\n")) == (COULD_NOT_SERVE, "", 1)
    assert f"standard {name} is closed" in err


# --run

SHOW = 'printf "%s\\n" "$uri" "$unixsocket" "$port" "$exportname"'


def shown(*options):
    status, out, err = end_of([*SERVER, *options, "--run", SHOW, "memory:1M"])
    assert (status, err) == (STOPPED, "")
    return out.split("\n")[:-1]


def test_a_command_is_told_where_to_connect(short_path):
    uri, path, port, name = shown()
    assert (uri, port, name) == (f"nbd+unix:///?socket={path}", "", "")
    assert not os.path.exists(path), "its private socket is still there"
    assert not os.path.exists(os.path.dirname(path))
    assert shown("-U", short_path / "s") == [f"nbd+unix:///?socket={short_path}/s", f"{short_path}/s", "", ""]
    uri, path, port, name = shown("-i", "127.0.0.1", "-p", "0", "-e", "a disk")
    assert (uri, path, name) == (f"nbd://localhost:{port}/a%20disk", "", "a disk")


WAYS_TO_LISTEN = [
    [],
    ["-i", "127.0.0.1", "-p", "0"],
    ["-i", "localhost", "-p", "0"],
    ["-i", "0.0.0.0", "-p", "0"],
    ["-e", "a disk"],
]
if socket.has_dualstack_ipv6():
    WAYS_TO_LISTEN.append(["-i", "::1", "-p", "0"])


@pytest.mark.parametrize("options", WAYS_TO_LISTEN, ids=" ".join)
def test_a_command_can_use_what_it_is_told(options):
    need("nbdinfo", package="libnbd-bin")
    command = 'nbdinfo --size "$uri"'
    assert end_of([*SERVER, *options, "--run", command, "memory:3M"]) == (STOPPED, f"{3 * MIB}\n", "")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("true", 0),
        ("exit 7", 7),
        ("kill -KILL $$", 128 + signal.SIGKILL),
        ("kill -TERM $$", 128 + signal.SIGTERM),
        ("/nonexistent/command 2>/dev/null", 127),
        (":;", 0),
    ],
)
def test_the_commands_exit_status_is_ours(command, status):
    assert end_of([*SERVER, "--run", command, "memory:1M"])[0] == status


RUNS_UNTIL_TOLD = "echo $$ > {pid}; mv {pid} {pid}.; exec sleep 1000"
RUNS_WHATEVER_IT_IS_TOLD = "trap '' TERM; " + RUNS_UNTIL_TOLD


@pytest.fixture
def running(short_path):
    """running(command): a server that runs it, and the number of its process; both ended after the test."""
    noted = short_path / "pid."
    started = []

    def run_it(command):
        command = command.format(pid=short_path / "pid")
        serve_and_run = [*SERVER, "-U", short_path / "s", "--run", command, "memory:1M"]
        started.append(subprocess.Popen(serve_and_run, cwd=ROOT, stderr=subprocess.DEVNULL))
        eventually(noted.exists, "the command runs", START_LIMIT_S)
        return started[0], int(noted.read_text())

    yield run_it
    for server in started:
        server.kill()
        server.wait()
    if noted.exists() and is_running(int(noted.read_text())):
        os.kill(int(noted.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_too(running, number):
    server, pid = running(RUNS_UNTIL_TOLD)
    server.send_signal(number)
    assert server.wait(END_LIMIT_S) == 128 + signal.SIGTERM
    assert not is_running(pid)


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_that_comes_as_soon_as_the_command_runs_ends_it_in_order(short_path, name):
    """The first thing it does is to send it: whoever can be seen must be ready to be told."""
    socket_path = short_path / "s"
    command = f"kill -{name} $PPID; exec sleep 1000"
    status, _, said = end_of([*SERVER, "-U", socket_path, "--run", command, "memory:1M"], limit_s=END_LIMIT_S)
    assert (status, said) == (128 + signal.SIGTERM, "")
    assert not socket_path.exists()


def test_a_command_that_ignores_sigterm_does_not_keep_a_server_that_is_told_twice(running, short_path):
    server, _ = running(RUNS_WHATEVER_IT_IS_TOLD)
    server.terminate()
    eventually(lambda: not (short_path / "s").exists(), "the first signal has been heard")
    server.terminate()
    assert server.wait(END_LIMIT_S) > 0


def is_running(pid):
    """Whether the process is there, and is not just waiting to be counted."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# --stdio

GREETING = "NBDMAGICIHAVEOPT\0\3"


def test_nbdinfo_starts_a_server_of_its_own(small_base):
    """By handing a socket over; nbdinfo has no other way."""
    nbdinfo = need("nbdinfo", package="libnbd-bin")
    found = run(nbdinfo, "--json", "--", "[", *SERVER, "--exit-with-parent", small_base, "]")
    assert json.loads(found)["exports"][0]["export-size"] == small_base.stat().st_size


@pytest.mark.parametrize("connect", ["connect_command", "connect_systemd_socket_activation"])
def test_libnbd_starts_a_server_of_its_own(small_base, connect):
    options = ["--exit-with-parent", *(["-s"] if connect == "connect_command" else [])]
    libnbd(connect, small_base, *SERVER, *options, small_base)


def test_one_client_is_served_on_two_pipes(small_base):
    base = small_base.read_bytes()
    requests = [
        request(READ, 1, 5, 1000),
        request(WRITE, 2, 5, payload=b"mine"),
        request(READ, 3, 0, len(base)),
        request(DISC, 4),
    ]
    lengths = {1: 1000, 3: len(base)}
    replies, status, err = over_pipes(small_base, b"".join(requests[:2]), lengths, 2)
    assert (replies[1], replies[2], status, err) == (base[5:1005], b"", STOPPED, b"")
    replies, status, err = over_pipes(small_base, requests[2] + requests[3], lengths, 1)
    assert (replies[3], status, err) == (base, STOPPED, b"")


def test_replies_are_all_there_although_the_client_has_sent_its_end(small_base):
    """Of 32 MiB, which no pipe holds: the server must wait until they are read."""
    base = small_base.read_bytes()
    count = 16
    sent = b"".join(request(READ, cookie, 0, len(base)) for cookie in range(count))
    replies, status, err = over_pipes(small_base, sent, dict.fromkeys(range(count), len(base)), count)
    assert replies == dict.fromkeys(range(count), base)
    assert (status, err) == (STOPPED, b"")


def over_pipes(base, requests, lengths, count):
    """What a server on two pipes answers to requests that are followed by the end of input."""
    command = [*SERVER, "-s", base]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        try:
            server.stdin.write(hello() + requests)
            server.stdin.close()
            receive(server.stdout.read, 18 + 10)
            replies = {}
            for _ in range(count):
                cookie, error, data = take_reply(lambda length: receive(server.stdout.read, length), lengths)
                assert error == 0
                replies[cookie] = data
            assert server.stdout.read() == b""
            return replies, server.wait(START_LIMIT_S), server.stderr.read()
        finally:
            server.kill()


# Socket activation


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def handed_over(listener, *arguments):
    """A server that finds `listener` as its descriptor 3."""
    return subprocess.Popen(
        [SERVER[0], "-c", HAND_OVER, str(listener.fileno()), *SERVER, *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        text=True,
    )


def test_a_socket_that_was_handed_over_is_served_and_left_to_its_owner(short_path, small_base):
    """Who connects before the server is up waits; who connects after it has gone waits for the next one."""
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for _ in range(2):
            server = handed_over(listener, small_base)
            try:
                with RawClient(path) as client:
                    assert client.size == small_base.stat().st_size
                server.terminate()
                _, err = server.communicate(timeout=START_LIMIT_S)
                assert (server.returncode, err.count("\n")) == (STOPPED, 1), err
            finally:
                server.kill()
                server.wait()
            assert path.exists(), "the server removed a socket that it had not made"


@pytest.mark.parametrize("options", [["-U", "{}/s"], ["-p", "0"], ["-s"]], ids=" ".join)
def test_a_socket_that_was_handed_over_leaves_no_choice_of_another(short_path, options):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = handed_over(listener, *(option.format(short_path) for option in options), "memory:1M")
        try:
            _, err = server.communicate(timeout=START_LIMIT_S)
            assert (server.returncode, err.count("\n")) == (WRONG_USAGE, 1), err
            assert "hands over" in err
        finally:
            server.kill()
            server.wait()


# The pid file, and the parent


def test_whoever_sees_the_pid_file_can_connect(short_path):
    """Looked for without a pause between two looks."""
    command = [*SERVER, "-U", short_path / "s", "-P", short_path / "pid", "memory:1M"]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not (short_path / "pid").exists():
            assert time.monotonic() < deadline, "no pid file"
        written = (short_path / "pid").read_text()
        with RawClient(short_path / "s"):
            assert written == f"{server.pid}\n", "the file was there before its content"
        server.terminate()
        assert server.wait(START_LIMIT_S) == STOPPED
        assert os.listdir(short_path) == []
    finally:
        server.kill()
        server.wait()


def test_a_pid_file_that_is_not_ours_any_more_is_left(serve, small_base):
    server = serve(small_base)
    server.pidfile.write_text("1\n")
    assert server.stop() == STOPPED
    assert server.pidfile.read_text() == "1\n"


@pytest.mark.parametrize("options", [["--exit-with-parent"], []], ids=["with", "without"])
def test_with_exit_with_parent_the_server_goes_when_its_parent_is_killed(short_path, options):
    pidfile = short_path / "pid"
    command = [*SERVER, *options, "-U", short_path / "s", "-P", pidfile, "memory:1M"]
    parent = subprocess.Popen(
        ["sh", "-c", '"$@" & wait', "sh", *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    eventually(pidfile.exists, "the server serves", START_LIMIT_S)
    pid = int(eventually(pidfile.read_text, "its number is there"))
    try:
        parent.kill()
        parent.wait()
        if options:
            eventually(lambda: os.listdir(short_path) == [], "the server has removed its socket and its pid file")
            eventually(lambda: not is_running(pid), "the server has ended")
        else:
            with RawClient(short_path / "s") as client:
                assert client.size == MIB
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: not is_running(pid), "the server has ended")
