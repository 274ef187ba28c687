"""The BASE argument of the command line."""

import pytest

from impl.base.demo import DemoBase
from impl.base.file import FileBase
from impl.base.memory import MemoryBase
from impl.base.open import SCHEMES, open_base
from impl.base.pattern import PatternBase, pattern
from impl.client import parse
from impl.errors import StartError, UsageError
from impl.sizes import SIZE_MAX

OPENS = [  # (text, kind, size)
    (None, DemoBase, 16 * 2**20),
    ("memory:1", MemoryBase, 1),
    ("memory:64K", MemoryBase, 65536),
    ("MEMORY:64k", MemoryBase, 65536),
    (f"memory:{SIZE_MAX}", MemoryBase, SIZE_MAX),
    ("pattern:7E", PatternBase, 7 * 2**60),
    ("pattern:1M?seed=3", PatternBase, 2**20),
    ("pattern:1M?jitter=5ms&seed=0&latency=0.5s", PatternBase, 2**20),
]

REFUSED = [  # (text, what the message says)
    ("", "base '' is empty"),
    ("memory", "base 'memory' has no size: expected memory:SIZE"),
    ("Pattern", "base 'Pattern' has no size: expected pattern:SIZE[?seed=N"),
    ("memory:", "memory: size '' is not a size"),
    ("memory:0", "memory: size '0' is zero: expected at least 1 byte"),
    ("memory:64X", "memory: size '64X' is not a size"),
    ("memory:8E", "memory: size '8E' is too large"),
    ("memory:1M?seed=1", "memory: takes no parameters, not 'seed=1'"),
    ("memory:1M?", "memory: takes no parameters, not ''"),
    ("pattern:", "pattern: size '' is not a size"),
    ("pattern:0K", "pattern: size '0K' is zero"),
    ("pattern:9223372036854775808", "is too large"),
    ("pattern:1M?", "pattern: parameter '' is unknown: expected seed=, latency=, jitter="),
    ("pattern:1M?speed=1", "pattern: parameter 'speed=1' is unknown"),
    ("pattern:1M?seed", "pattern: parameter 'seed' is unknown"),
    ("pattern:1M?seed=1&", "pattern: parameter '' is unknown"),
    ("pattern:1M?Seed=1", "pattern: parameter 'Seed=1' is unknown"),
    ("pattern:1M?seed=1&seed=1", "pattern: parameter 'seed' is given twice"),
    ("pattern:1M?seed=", "pattern: seed '' is not a seed"),
    ("pattern:1M?seed=-1", "pattern: seed '-1' is not a seed"),
    ("pattern:1M?seed=18446744073709551616", "expected a whole number from 0 to 18446744073709551615"),
    ("pattern:1M?latency=10", "pattern: latency '10' is not a duration"),
    ("pattern:1M?jitter=-5ms", "pattern: jitter '-5ms' is not a duration"),
    ("pattern:1M?latency=1ms?jitter=1ms", "pattern: latency '1ms?jitter=1ms' is not a duration"),
    ("foo:bar", "base 'foo:bar' has the unknown scheme 'foo'"),
    ("nbd+vsock://1/disk", "unknown scheme 'nbd+vsock'"),
    ("nbd://", "the host is missing"),
    ("nbd+unix:///disk", "one socket=PATH is needed"),
    ("https://example.com/disk.img", "unknown scheme 'https'"),
    ("s3://bucket/disk.img", "unknown scheme 's3'"),
    ("foo:a\nb\0c", "unknown scheme 'foo'"),
    ("foo:" + "x" * 10_000, "unknown scheme 'foo'"),
]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("text", "kind", "size"), OPENS)
def test_a_text_names_a_base(text, kind, size):
    base = open_base(text)
    assert type(base) is kind
    assert base.size == size
    base.close()


@pytest.mark.parametrize(("text", "says"), REFUSED, ids=lambda text: repr(text[:30]))
def test_a_text_that_makes_no_sense_is_refused_on_one_line(text, says):
    with pytest.raises(UsageError) as refusal:
        open_base(text)
    message = str(refusal.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("text", ["", "foo:bar"])
def test_who_did_not_know_the_forms_is_told_them(text):
    with pytest.raises(UsageError) as refusal:
        open_base(text)
    assert "a path" in str(refusal.value)
    for scheme in SCHEMES.values():
        assert scheme.form in str(refusal.value)


ELSEWHERE = ("nbd", "nbd+unix", "nbds", "nbds+unix")  # see test_base_nbd.py


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in ELSEWHERE])
def test_the_form_of_a_scheme_is_one_that_opens(name):
    assert open_base(SCHEMES[name].form.replace("SIZE", "1M").replace("[", "").replace("]", "").replace("N", "7"))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_form_of_a_scheme_that_leads_elsewhere_is_a_uri(name):
    parse(SCHEMES[name].form.replace("[", "").replace("]", "").replace(":PORT", ":1"))


def test_the_parameters_of_a_pattern_arrive():
    base = open_base("pattern:1M?seed=3&latency=0s&jitter=1us")
    assert base.pread(5, 100) == pattern(3, 5, 100)
    assert not base.is_ready(0, 1)
    assert open_base("pattern:1M?seed=3").is_ready(0, 1)


@pytest.mark.parametrize("name", ["disk.img", "disk", "a b", "1:2", "foo:bar", "memory:1G", "pattern:x?y=z"])
def test_a_file_that_exists_is_a_path_whatever_it_is_called(name, tmp_path):
    (tmp_path / name).write_bytes(b"content")
    for text in (name, f"./{name}", str(tmp_path / name)):
        base = open_base(text)
        assert type(base) is FileBase
        assert base.pread(0, 7) == b"content"
        base.close()


@pytest.mark.parametrize("text", ["disk.img", "./foo:bar", "/absent/foo:bar", "a/b:c", "1:2", ":", "a_b:c"])
def test_what_has_no_scheme_is_a_path_even_if_it_does_not_exist(text):
    with pytest.raises(StartError, match="cannot open"):
        open_base(text)
