"""On what a benchmark ran: the machine, and the versions of everything that took part.

Source:  proc(5): /proc/cpuinfo, /proc/self/mountinfo; os-release(5).
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from check.live.servers import path_of
from impl import __version__
from impl.compiled import is_compiled

ASKED = (("nbdkit", "--version"), ("qemu-nbd", "--version"), ("nbd-server", "-V"), ("fio", "--version"))


def described(folder: Path) -> dict[str, str]:
    """For people. `folder`: where overlays are."""
    return {
        "processors": f"{os.cpu_count()} processors ({_processor()})",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB",
        "system": f"{_system()}, Linux {platform.release()}",
        "overlays": f"overlays on {_file_system(folder)}",
        "load": f"load {os.getloadavg()[0]:.1f} at the start",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _file_system(folder: Path) -> str:
    """The kind of the mount that a folder is on."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "an unknown file system"


def versions() -> list[str]:
    """Ours, Python's, and those of what is installed."""
    told = [f"cowproof {__version__}{_commit()}{', compiled' * is_compiled()}", f"Python {platform.python_version()}"]
    for program, argument in ASKED:
        found = path_of(program)
        if found is not None:
            done = subprocess.run([found, argument], capture_output=True, text=True, timeout=10, check=False)
            first = ((done.stdout or done.stderr).strip().splitlines() or [program])[0]
            told.append(first.removeprefix("This is ").replace(found, program).partition(" (")[0])
    return told


def _commit() -> str:
    """Of a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
