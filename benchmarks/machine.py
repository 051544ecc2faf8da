"""What numbers were measured with: versions and the machine, without anything that names it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import apsw

import pyrep

__all__ = ["ROOT", "anonymous", "describe"]

ROOT = Path(__file__).resolve().parents[1]


def describe() -> dict[str, str]:
    """Return names and versions; what cannot be found out is said to be unknown."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "pyrep": f"{pyrep.__version__} ({_commit()})",
        "Litestream": _litestream(),
        "Python": platform.python_version(),
        "SQLite of pyrep": apsw.sqlite_lib_version(),
        "SQLite of the application": sqlite3.sqlite_version,
        "lz4": _lz4(),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "CPU": f"{len(os.sched_getaffinity(0))} x {_cpu()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "load before": load,
    }


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"


def _litestream() -> str:
    found = shutil.which("litestream", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        return "missing"
    done = subprocess.run([found, "version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _lz4() -> str:
    try:
        library = ctypes.CDLL("liblz4.so.1")
    except OSError:
        return "unknown"
    library.LZ4_versionString.restype = ctypes.c_char_p
    return str(library.LZ4_versionString().decode())


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def anonymous(text: str) -> str:
    """Return a text without this machine's name and folders."""
    folders = {str(ROOT): "SOURCE", sys.prefix: "VENV", tempfile.gettempdir(): "TMP"}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder, folders[folder])
    home = str(Path.home())
    if home != "/":
        text = text.replace(home, "HOME")
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)
