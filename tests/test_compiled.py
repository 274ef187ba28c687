"""The server whose hot modules are compiled is the same server; and it is never needed.

Source:  README, "Serving"; docs/architecture.md, "Compiled"; impl/compiled.py.
"""

import ast
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from servers import MIB, ROOT, refuse

from bench import compiled as bench_compiled
from bench import servers
from bench.command import bench
from bench.results import load
from bench.servers import SERVERS, Base
from impl import compiled
from impl.base.pattern import pattern
from impl.client import connect
from impl.compiled import HOT
from impl.errors import StartError

COMPILING_LIMIT_S = 280
NO_COMPILER = "/no/such/compiler"
SOURCES = ("impl", "pyproject.toml", "README.md", "setup.py")
# Tests of the server as a whole, and of what it keeps in memory, but for those that put something else in its place.
HELD_AGAINST_IT = (
    ["tests/test_device_suite.py"],  # beside the model
    ["tests/test_server_pipeline.py"],
    ["tests/test_server_bounds.py", "-k", "holds or held"],
    ["tests/test_server_concurrency.py", "-k", "not found_out"],
    ["tests/test_real_clients.py", "-k", "libnbd"],
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What setup.py needs of one: what it leaves there is in nobody's way."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(checkout, tmp_path_factory):
    """A folder to import everything from, built as `COWPROOF_COMPILE=1 pip install .` does; and the tests."""
    if lacking := compiled.lacking():
        refuse(lacking)
    folder = tmp_path_factory.mktemp("built")
    done = set_up(checkout, "-q", "build", "--build-lib", folder, COWPROOF_COMPILE="1")
    assert done.returncode == 0, done.stderr
    for name in ("bench", "check", "model", "specs", "tests", "pyproject.toml"):
        copy(ROOT / name, folder)
    return folder


def copy(source, folder):
    if source.is_dir():
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    else:
        shutil.copy(source, folder)


def set_up(folder, *arguments, **env):
    return in_folder(folder, "setup.py", *arguments, **env)


def in_folder(folder, *arguments, **env):
    """Python, which finds nothing of ours but there."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=COMPILING_LIMIT_S,
        check=False,
    )


def extensions(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(tuple(EXTENSION_SUFFIXES))]


# Which modules.


def inner_functions(source):
    """Functions in a function, by name: compiled, each is part of a cycle with the variables around it."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    outer = [node for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
    return [node.name for one in outer for node in ast.walk(one) if node is not one and isinstance(node, functions)]


def source_of(module):
    return (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def test_each_hot_module_is_there_and_named_once():
    assert all(find_spec(module) for module in HOT)
    assert len(set(HOT)) == len(HOT) > 5
    assert all((ROOT / argument).is_file() for argument in compiled.arguments() if not argument.startswith("-"))


@pytest.mark.parametrize("module", HOT)
def test_nothing_that_a_request_held_waits_for_garbage_to_be_collected(module):
    assert inner_functions(source_of(module)) == []


def test_a_function_in_a_function_is_found():
    assert inner_functions("class C:\n def f(self):\n  if self:\n   def g(): return self\n   return g") == ["g"]
    assert inner_functions("def f(): return lambda: f\ndef g(): return [f for _ in g()]") == []


# The option.


def test_without_the_option_nothing_is_compiled(checkout, tmp_path):
    for chosen in ({}, {"COWPROOF_COMPILE": ""}, {"COWPROOF_COMPILE": "0"}):
        done = set_up(checkout, "-q", "build", "--build-lib", tmp_path, CC=NO_COMPILER, **chosen)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "impl" / "compiled.py").exists()
    assert extensions(tmp_path) == []


REFUSALS = [  # (command, environment, what is said)
    (["build"], {"COWPROOF_COMPILE": "yes"}, "expected 1"),
    (["build"], {"COWPROOF_COMPILE": "1", "CC": NO_COMPILER}, "apt-get install gcc"),
    (["build_ext", "--inplace"], {"COWPROOF_COMPILE": "1"}, "pip install -e"),
]


@pytest.mark.parametrize(("arguments", "env", "names"), REFUSALS)
def test_what_cannot_be_compiled_is_refused_in_one_line(checkout, arguments, env, names):
    done = set_up(checkout, "-q", *arguments, **env)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("COWPROOF_COMPILE=")
    assert names in last
    assert extensions(checkout) == []


LACKING = [  # (what is not there, what has to be said)
    ("CC", "apt-get install gcc python3-dev"),
    ("mypyc", "mypyc is not installed: pip install mypy setuptools"),
    ("Python.h", "apt-get install python3-dev"),
]


@pytest.mark.parametrize(("what", "said"), LACKING)
def test_what_is_missing_is_named_with_what_to_install(what, said, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", NO_COMPILER if what == "CC" else sys.executable)
    monkeypatch.setattr(compiled, "find_spec", lambda package: None if package == what else package)
    if what == "Python.h":
        monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path))
    assert said in compiled.lacking()


# What comes of it.


def test_every_hot_module_is_compiled_and_its_source_is_there_too(built):
    told = f"import importlib; [print(importlib.import_module(name).__file__) for name in {HOT}]"
    done = in_folder(built, "-c", told)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert len(found) == len(HOT)
    for module, path in zip(HOT, found, strict=True):
        assert path.endswith(tuple(EXTENSION_SUFFIXES))
        assert Path(path).is_relative_to(built)
        assert (built / f"{module.replace('.', '/')}.py").exists()


def test_the_version_says_whether_it_is_compiled(built):
    for folder, is_so in ((built, True), (ROOT, compiled.is_compiled())):
        done = in_folder(folder, "-c", "from impl.cli import main; main()", "--version")
        assert done.stdout.endswith(", compiled\n") is is_so, done.stderr


@pytest.mark.parametrize("arguments", HELD_AGAINST_IT, ids=lambda arguments: arguments[0])
def test_the_tests_of_the_server_pass(built, arguments):
    done = in_folder(built, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    assert done.returncode == 0, done.stdout


# In the benchmark.


@pytest.fixture
def few(monkeypatch):
    """A second's work: which modules it is makes no difference to who has them compiled."""
    if lacking := compiled.lacking():
        refuse(lacking)
    monkeypatch.setattr(compiled, "HOT", ("impl.overlay.blocks",))


def setting():
    return next(server for server in SERVERS if server.name == bench_compiled.NAME)


def test_the_benchmark_compiles_a_copy_once_and_it_serves(few, short_path, small_base):
    base = Base(small_base, 2 * MIB)
    made = set()
    for _ in range(2):
        with servers.started(setting(), base, "", short_path) as running, connect(running.uri) as disk:
            disk.pwrite(5, b"written")
            assert disk.pread(0, 20) == pattern(2, 0, 5) + b"written" + pattern(2, 12, 8)
            command = Path(f"/proc/{running.pid}/cmdline").read_bytes().split(b"\0")
            assert os.fsencode(short_path / bench_compiled.NAME / bench_compiled.PROGRAM) in command
            assert b".so" in Path(f"/proc/{running.pid}/maps").read_bytes()
            made.add(tuple(path.stat().st_mtime_ns for path in extensions(short_path / bench_compiled.NAME / "impl")))
    assert len(made) == 1
    assert extensions(ROOT / "impl") == []


def test_what_cannot_be_compiled_is_told_in_one_line_and_not_tried_again(few, short_path, small_base, monkeypatch):
    monkeypatch.setattr(compiled, "HOT", ("impl.no_such_module",))
    lines = []
    for _ in range(2):
        with pytest.raises(StartError) as told, servers.started(setting(), Base(small_base, 2 * MIB), "", short_path):
            pass
        lines.append(str(told.value))
        monkeypatch.setattr(subprocess, "Popen", None)
    assert lines[0] == lines[1]
    assert lines[0].startswith("it cannot be compiled: ")
    assert "\n" not in lines[0]


def test_the_list_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("CC", NO_COMPILER)
    (line,) = [
        line for line in CliRunner().invoke(bench, ["--list"]).output.splitlines() if bench_compiled.NAME in line
    ]
    assert "no C compiler" in line


def test_a_benchmark_without_a_compiler_measures_all_else_and_says_why(short_path, tmp_path):
    kept = tmp_path / "run.json"
    told = ["--rows", "start", "--servers", "cowproof,cowproof-compiled", "--rounds", "1", "--size", "16M"]
    told += ["--repeats", "0", "--json", kept, "--directory", short_path]
    done = in_folder(ROOT, "-m", "bench", *told, CC=NO_COMPILER)
    assert done.returncode == 0, done.stderr
    ours, other = load(kept).rows[0].servers
    assert (len(ours.samples), len(other.samples)) == (1, 0)
    assert "no C compiler" in other.cannot
