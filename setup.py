"""Only for who wants the hot modules compiled: `COWPROOF_COMPILE=1 pip install .`; all else is in pyproject.toml.

pip asks first what the build requires, and then builds: so mypyc is not imported before it compiles. It writes into
a temporary folder, since what an earlier build has left would go into the wheel.
"""

import atexit
import os
import runpy
import shutil
import tempfile
import tomllib
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SWITCH = "COWPROOF_COMPILE"
CHOICES = {"": False, "0": False, "1": True}


class Compiled(Distribution):
    """It has extensions, though which ones is found out later."""

    def has_ext_modules(self) -> bool:
        """As of a distribution that lists them."""
        return True


class Compile(build_ext):
    """Builds the hot modules."""

    def finalize_options(self) -> None:
        """Refuse what cannot be, or would deceive, before anything is compiled."""
        hot = runpy.run_path(str(ROOT / "impl" / "compiled.py"))
        if self.inplace or self.editable_mode:
            raise SystemExit(f"{SWITCH}=1 does not go with pip install -e: what is compiled would hide what is edited")
        if lacking := hot["lacking_compiler"]():
            raise SystemExit(f"{SWITCH}=1: {lacking}")
        from mypyc.build import mypycify  # noqa: PLC0415

        self.distribution.ext_modules = mypycify(hot["arguments"](), target_dir=str(FOLDER))
        super().finalize_options()


def mypy() -> str:
    """The version that the tests are run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(found for found in project["optional-dependencies"]["test"] if found.startswith("mypy=="))


chosen = os.environ.get(SWITCH, "")
if chosen not in CHOICES:
    raise SystemExit(f"{SWITCH}={chosen}: expected 1, to compile, or 0")
if CHOICES[chosen]:
    FOLDER = Path(tempfile.mkdtemp(prefix="cowproof-build-"))
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
    setup(
        distclass=Compiled,
        cmdclass={"build_ext": Compile},
        setup_requires=[mypy()],
        options={"build": {"build_base": str(FOLDER)}},
    )
else:
    setup()
