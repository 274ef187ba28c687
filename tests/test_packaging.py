"""What is published: the client's types and names.

Source: PEP 561; the Python documentation of importlib.resources.
"""

import inspect
import tomllib
import typing
from importlib.resources import files

from servers import ROOT

import impl.client
from impl.client import Client


def test_type_checkers_are_told_that_our_annotations_count():
    """The marker has to be in the source, and named as data of the package: else it is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["impl"]
    assert files("impl").joinpath("py.typed").read_bytes() == b""


def types_named_by(annotation):
    """The classes of ours in an annotation."""
    if isinstance(annotation, type) and annotation.__module__.startswith("impl."):
        yield annotation
    for argument in typing.get_args(annotation):
        if isinstance(argument, (list, tuple)):
            for one in argument:
                yield from types_named_by(one)
        else:
            yield from types_named_by(argument)


def public_functions():
    """What users call, and the fields and properties they read."""
    for name in impl.client.__all__:
        found = getattr(impl.client, name)
        if inspect.isfunction(found):
            yield name, found
    for name, member in vars(Client).items():
        if not name.startswith("_"):
            yield name, member.fget if isinstance(member, property) else member


def test_users_can_import_every_type_that_the_client_gives_them_from_one_place():
    named = {
        found: name
        for name, function in public_functions()
        for annotation in typing.get_type_hints(function).values()
        for found in types_named_by(annotation)
    }
    assert len(named) > 5
    missing = {found.__name__: name for found, name in named.items() if found.__name__ not in impl.client.__all__}
    assert not missing
