"""A pytest plugin: every rule is a test, of the server that the options or the project's settings name.

`pytest -p check.conform.pytest_plugin --nbd-start 'exec ./server -U $unixsocket $base'`, or once for all in
pyproject.toml:

    [tool.pytest.ini_options]
    addopts = "-p check.conform.pytest_plugin"
    nbd_start = "exec ./server -U $unixsocket $base"

What is not offered is skipped; a SHOULD that is not done is an expected failure, unless --nbd-strict.

It is no plugin that pytest finds by itself: of those, pytest rewrites the assertions of the whole package.

Source:  pytest, "Writing plugins", "Assertion Rewriting", "Working with non-python tests".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from check.conform.rule import Rule
    from check.conform.subject import Subject

OPTIONS = {
    "nbd_start": "how a server is started: a shell's command with $unixsocket, see cowproof conform --help",
    "nbd_uri": "a server that is there; what is on its disk may be overwritten",
    "nbd_export": "with nbd_start: which export, if not the default one",
    "nbd_only": "only these rules, groups or patterns, with spaces between them",
    "nbd_claim": "what the server is said to do beyond the protocol, with spaces between: see cowproof conform --help",
}
SUBJECT = pytest.StashKey["Subject"]()
STACK = pytest.StashKey[ExitStack]()  # what is to be ended


def pytest_addoption(parser: pytest.Parser) -> None:
    """As options, and as settings of the project."""
    group = parser.getgroup("nbd", "conformance of an NBD server (cowproof)")
    for name, says in OPTIONS.items():
        group.addoption(f"--{name.replace('_', '-')}", dest=name, help=says)
        parser.addini(name, says)
    group.addoption(
        "--nbd-tls", action="store_true", help="with nbd_start: speak TLS, also where rules are not about it"
    )
    group.addoption("--nbd-quick", action="store_true", help="try less of what takes long")
    group.addoption("--nbd-strict", action="store_true", help="a SHOULD that is not done fails, too")


def _told(config: pytest.Config, name: str) -> str:
    found = config.getoption(name) or config.getini(name)
    return str(found) if found else ""


@pytest.hookimpl(tryfirst=True)  # so that -k and -m choose among them, too
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test for each rule, behind all others, if there is a server to try."""
    if not (_told(config, "nbd_start") or _told(config, "nbd_uri")):
        return
    names_others = any("::" in argument or Path(argument).is_file() for argument in config.args)
    if names_others and config.args_source is pytest.Config.ArgsSource.ARGS:
        return
    from check.conform.run import chosen  # noqa: PLC0415 - only those who want it should wait for it
    from impl.errors import UsageError  # noqa: PLC0415

    try:
        rules = chosen(_told(config, "nbd_only").split())
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    suite = Suite.from_parent(session, name="nbd", nodeid="nbd", path=Path(session.startpath))
    suite.rules = rules
    found = list(suite.collect())
    config.hook.pytest_collectreport(report=pytest.CollectReport(suite.nodeid, "passed", None, [*found]))
    items.extend(found)


def pytest_collection_finish(session: pytest.Session) -> None:
    """There has to be a server, if one of the rules is still to be tried."""
    config = session.config
    if config.option.collectonly or not any(isinstance(item, RuleItem) for item in session.items):
        return
    from impl.errors import StartError, UsageError  # noqa: PLC0415

    try:
        config.stash[SUBJECT] = config.stash.setdefault(STACK, ExitStack()).enter_context(_subject(config))
    except (UsageError, StartError) as error:
        raise pytest.UsageError(str(error)) from None


def _subject(config: pytest.Config) -> AbstractContextManager[Subject]:
    from check.conform.rule import CLAIMS  # noqa: PLC0415
    from check.conform.run import subject_of  # noqa: PLC0415
    from check.conform.subject import Settings  # noqa: PLC0415
    from impl.client.uri import Target, Tls  # noqa: PLC0415
    from impl.errors import UsageError  # noqa: PLC0415

    claims = frozenset(_told(config, "nbd_claim").split())
    if claims - set(CLAIMS):
        raise UsageError(f"nbd_claim: expected some of {', '.join(CLAIMS)}, found {' '.join(sorted(claims))}")
    settings = Settings(quick=config.getoption("nbd_quick"), claims=claims)
    uri, command = _told(config, "nbd_uri") or None, _told(config, "nbd_start") or None
    secure = Tls(verify_peer=False) if config.getoption("nbd_tls") else None
    return subject_of(uri, command, Target(_told(config, "nbd_export"), tls=secure), settings)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whatever was started is ended."""
    config.stash.setdefault(STACK, ExitStack()).close()


class Suite(pytest.Collector):
    """All the rules that are asked for."""

    rules: Sequence[Rule]

    def collect(self) -> Iterator[pytest.Item]:
        """They are added to what others have collected."""
        for rule in self.rules:
            item = RuleItem.from_parent(self, name=rule.name)
            item.rule = rule
            yield item


class RuleItem(pytest.Item):
    """One rule."""

    rule: Rule

    def runtest(self) -> None:
        """Try it."""
        from check.conform.room import NoRoom  # noqa: PLC0415
        from check.conform.rule import Need, Verdict  # noqa: PLC0415
        from check.conform.run import verdict_of  # noqa: PLC0415

        subject = self.config.stash[SUBJECT]
        try:
            verdict, detail = verdict_of(self.rule, subject)
        except NoRoom as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        if verdict in (Verdict.NOT_OFFERED, Verdict.NOT_APPLICABLE):
            pytest.skip(f"{verdict.value}: {detail}")
        if verdict is Verdict.PASS:
            return
        if not self.rule.binds(subject.settings.claims) and not self.config.getoption("nbd_strict"):
            pytest.xfail(f"{'SHOULD' if self.rule.need is Need.SHOULD else 'not claimed'}: {detail}")
        raise Broken(detail)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> str:
        """What the server does instead."""
        if isinstance(excinfo.value, Broken):
            return f"{self.rule.need.value} ({self.rule.section}): {self.rule.says}\n{excinfo.value}"
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        """It stands in no file."""
        return self.path, None, self.name


class Broken(Exception):
    """The server breaks a rule."""
