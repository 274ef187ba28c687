"""Servers for the kit to try, all in this process, so that hundreds can be had in a second."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from check.conform.disk import VECTORS
from check.conform.rule import RULES, Verdict
from check.conform.run import run
from check.conform.subject import Subject
from check.live.programs import BLOCK_BYTES
from impl.base.memory import BytesBase
from impl.base.open import open_base
from impl.client.uri import Target
from impl.server.export import ExportOptions, make_export
from impl.server.listeners import listen_unix
from impl.server.server import Server
from impl.server.session import NO_TLS

SOON_S = 20


@contextmanager
def serving(place, disk=VECTORS, block_size=4096, tls=NO_TLS, **options):
    """A server of ours in this process, over the base of the vectors, or a slow one."""
    base = open_base(disk.name) if disk.is_pattern else BytesBase(disk.content())
    made = make_export(base, ExportOptions(store="memory", block_size=block_size, **options))
    server = Server({"": made}, "", 4, tls=tls)
    listener = listen_unix(str(place))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Target(path=str(place))
    finally:
        server.stop()
        server.stop()  # a second time: without waiting
        thread.join(SOON_S)
        listener.close()
        made.store.close()


@dataclass(frozen=True)
class InProcess(Subject):
    """A subject whose fresh servers are made here, with these options."""

    options: dict = field(default_factory=dict)
    has_slow_disks = True

    @contextmanager
    def fresh(self, disk=VECTORS):
        block_size = BLOCK_BYTES if disk.is_pattern else 4096
        with serving(f"{self.target.path}-fresh", disk, block_size, **self.options) as target:
            yield replace(self, target=replace(self.target, path=target.path))


def failed(subject, rules=None):
    """The rules that a server fails, by their names, with why."""
    results = run(list(RULES.values()) if rules is None else rules, lambda: subject, lambda _: None)
    return {result.rule.name: result.detail for result in results if result.verdict is Verdict.FAIL}
