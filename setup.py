"""Build the native modules; everything else is in pyproject.toml.

Environment:

``PYREP_LZ4_LIBS``, ``PYREP_LZ4_CFLAGS``
    Link and compile flags for liblz4, used instead of looking for it.
``PYREP_DEBUG=1``
    Bounds, overflow and None checks in the Cython code.
``PYREP_CYTHON_TRACE=1``
    Line tracing, for coverage of the Cython code.

Neither setuptools nor Cython notices changed switches, so the non-default builds are forced;
build with ``--force`` to go back to a default one.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

LZ4_MINIMUM = "1.9"
DEBUG = os.environ.get("PYREP_DEBUG") == "1"
TRACE = os.environ.get("PYREP_CYTHON_TRACE") == "1"


def run(command: list[str]) -> str | None:
    """Return what a command prints, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def links(libs: list[str]) -> bool:
    """Say whether a program that calls liblz4 links with these flags."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(
            "int LZ4_versionNumber(void);\nint main(void) { return LZ4_versionNumber() < 0; }\n"
        )
        return run([*compiler, str(source), "-o", str(Path(folder, "probe")), *libs]) is not None


def find_lz4() -> tuple[list[str], list[str]]:
    """Return compile and link flags for liblz4 and print where they are from.

    No header is needed: the prototypes are declared in src/lz4_api.h.
    """
    cflags = shlex.split(os.environ.get("PYREP_LZ4_CFLAGS", ""))
    if "PYREP_LZ4_LIBS" in os.environ:
        return cflags, chosen("PYREP_LZ4_LIBS", shlex.split(os.environ["PYREP_LZ4_LIBS"]))
    if run(["pkg-config", "--exists", f"liblz4 >= {LZ4_MINIMUM}"]) is not None:
        cflags += shlex.split(run(["pkg-config", "--cflags", "liblz4"]) or "")
        libs = shlex.split(run(["pkg-config", "--libs", "liblz4"]) or "")
        return cflags, chosen("pkg-config", libs)
    if links(["-l:liblz4.so.1"]):
        return cflags, chosen("the run-time library", ["-l:liblz4.so.1"])
    sys.exit(
        "pyrep needs liblz4 >= 1.9.  Do one of these:\n"
        "  - set PYREP_LZ4_LIBS (and PYREP_LZ4_CFLAGS) to the flags that link it\n"
        "  - install its development package, so that `pkg-config liblz4` finds it\n"
        "  - install its run-time library liblz4.so.1 (Debian: apt-get install liblz4-1)"
    )


def chosen(where: str, libs: list[str]) -> list[str]:
    """Print and return the link flags."""
    print(f"liblz4: {' '.join(libs)} ({where})", file=sys.stderr)
    return libs


def directives() -> dict[str, object]:
    """Return the compiler directives of this build."""
    return {
        "language_level": 3,
        "boundscheck": DEBUG,
        "wraparound": False,
        "initializedcheck": DEBUG,
        "nonecheck": DEBUG,
        "overflowcheck": DEBUG,
        "cdivision": True,
        "linetrace": TRACE,
    }


def extension(name: str, cflags: list[str], libs: list[str]) -> Extension:
    """Describe one native module of the package."""
    macros: list[tuple[str, str | None]] = []
    if TRACE:
        macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    return Extension(
        f"pyrep.{name}",
        [f"src/{name}.pyx"],
        depends=sorted(str(path) for path in Path("src").glob("*.h")),
        include_dirs=["src"],
        define_macros=macros,
        extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra", *cflags],
        extra_link_args=libs,
    )


lz4_cflags, lz4_libs = find_lz4()
setup(
    ext_modules=cythonize(
        [
            extension("_checksum", [], []),
            extension("_wal", [], []),
            extension("_ltx", lz4_cflags, lz4_libs),
        ],
        include_path=["src"],
        compiler_directives=directives(),
        force=DEBUG or TRACE,
    )
)
