"""Which module may import which, and that files are changed through ``pyrep.osfs`` only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from fixtures.sources import Module, modules

# A module may import its own package, every lower layer, and in its layer what stands before it.
# The restore plan is a pure function that tenants use too, so it has a place of its own; a tenant
# compacts through the compactor, which works in the tenant's state directory.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "ids", "units", "clock", "log", "memory"),
    (
        "zstdpages",
        "_checksum",
        "_wal",
        "_ltx",
        "osfs",
        "ltxfile",
        "ltxgrowth",
        "ltxwriter",
        "ltxio",
    ),
    ("sqlite", "storage", "watch", "schedule", "catalog", "config"),
    (
        "restore.plan",
        "retention",
        "tenant.statedir",
        "compactor",
        "tenant",
        "restore",
        "verify",
        "doctor",
    ),
    ("store",),
    ("daemon",),
    ("embed",),
    ("cli", "bench", "__main__"),
)
NATIVE = {"_checksum", "_wal", "_ltx"}

# Third-party packages, and the modules (or packages) that alone may import them.
FENCES: dict[str, tuple[str, ...]] = {
    "click": ("cli", "bench.commands"),
    "yaml": ("config.load",),
    "apsw": ("sqlite", "catalog", "restore"),
    "inotify_simple": ("watch.inotify",),
    "botocore": ("storage.s3_session",),
    "nats": ("storage.nats", "storage.nats_bucket", "storage.nats_creds", "storage.nats_session"),
    "nkeys": ("storage.nats_creds",),
    "paramiko": ("storage.sftp_session",),
    "azure": ("storage.abs_session",),
    "google": ("storage.gcs_session",),
    "urllib3": (
        *("storage.abs", "storage.abs_session"),
        *("storage.gcs", "storage.gcs_session", "storage.http", "storage.objects"),
        *("storage.oss_session", "storage.s3_bucket", "storage.s3_calls", "storage.s3_session"),
        *("storage.webdav", "storage.webdav_session"),
    ),
    "typing_extensions": (),
    "zstandard": ("zstdpages",),
}
TYPES_ONLY = {"_typeshed"}

# (module, call): why this change of a file does not go through osfs.
MUTATIONS_ALLOWED: dict[tuple[str, str], str] = {
    ("bench.make", ".mkdir"): "pyrep-bench is an application: its files are not replicated state",
    ("bench.commands.load", "journal.open"): "the journal of a load, as above",
    ("bench.commands.validate", "tempfile.TemporaryDirectory"): "for restored copies, as above",
    ("cli.main", "os.open"): "/dev/null takes the place of a standard output nobody reads",
    ("restore.target", "os.open"): "a stale temporary file is opened to try its lock, not written",
}

_OS_MUTATIONS = frozenset(
    (
        *("chmod", "chown", "copy_file_range", "fchmod", "fchown", "fdatasync", "fsync"),
        *("ftruncate", "lchown", "link", "makedirs", "mkdir", "mkfifo", "mknod", "pwrite"),
        *("posix_fallocate", "pwritev", "remove", "removedirs", "removexattr", "rename"),
        *("renames", "replace", "rmdir", "sendfile", "setxattr", "symlink", "truncate"),
        *("unlink", "utime", "write", "writev"),
    )
)
_PATH_MUTATIONS = frozenset(
    (
        *("chmod", "hardlink_to", "lchmod", "mkdir", "rename", "rmdir", "symlink_to"),
        *("touch", "unlink", "write_bytes", "write_text"),
    )
)
_WRITE_FLAGS = frozenset(["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"])
_SHUTIL_HARMLESS = frozenset(("disk_usage", "get_terminal_size", "which"))


def _imports(module: Module) -> Iterator[str]:
    """Yield the full dotted names that a module imports, at any depth of its code."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _import_from(module, node)


def _import_from(module: Module, node: ast.ImportFrom) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        package = ["pyrep", *filter(None, module.name.split("."))]
        up = node.level - 1 if module.is_package else node.level
        base = ".".join([*package[: len(package) - up], *filter(None, [base])])
    known = {f"pyrep.{other.name}" for other in modules()} | {f"pyrep.{name}" for name in NATIVE}
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in known else base


def _place(name: str) -> tuple[int, int] | None:
    """Return layer and position of a module of pyrep, or None if the table does not have it."""
    places = {entry: (n, names.index(entry)) for n, names in enumerate(LAYERS) for entry in names}
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((places[prefix] for prefix in prefixes if prefix in places), None)


def _import_fault(importer: str, imported: str) -> str | None:
    """Return what is wrong with one import, or None."""
    if not imported.startswith("pyrep."):
        return None if imported == "pyrep" else _fence_fault(importer, imported)
    target = imported.removeprefix("pyrep.")
    here, there = _place(importer), _place(target)
    if here is None or there is None:
        return f"{importer if here is None else target} is not in the table of layers"
    same_package = importer.split(".", maxsplit=1)[0] == target.split(".")[0]
    programs = importer == "__main__" or importer.startswith("bench.")
    if target.split(".")[0] == "cli" and not programs and not same_package:
        return f"{importer} imports {target}: nobody imports the command line"
    if same_package or there < here:
        return None
    return f"{importer} (layer {here[0]}) imports {target} (layer {there[0]})"


def _fence_fault(importer: str, imported: str) -> str | None:
    top = imported.split(".", maxsplit=1)[0]
    if top in sys.stdlib_module_names or top in TYPES_ONLY:
        return None
    allowed = FENCES.get(top)
    if allowed is None:
        return f"{importer} imports {top}, which the table of third-party packages does not have"
    if any(importer == name or importer.startswith(f"{name}.") for name in allowed):
        return None
    return f"{importer} imports {top}, which only {', '.join(allowed) or 'stubs'} may"


def _mutations(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of each call that changes the file system without osfs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _mutation(node)
            if name:
                yield node.lineno, name
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
            names = ", ".join(alias.name for alias in node.names)
            yield node.lineno, f"from {node.module} import {names}"


def _mutation(call: ast.Call) -> str | None:
    """Return the name of a call that changes files, else None."""
    function = call.func
    if isinstance(function, ast.Name):
        return "open" if function.id == "open" and _opens_for_writing(call, 1) else None
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    name = function.attr
    if owner == "osfs":
        return None
    found = {
        "os": name in _OS_MUTATIONS or (name == "open" and _has_write_flag(call)),
        "shutil": name not in _SHUTIL_HARMLESS,
        "tempfile": name != "gettempdir",
        "io": name == "open" and _opens_for_writing(call, 1),
    }.get(owner, _is_path_mutation(call, name))
    return f"{owner}.{name}" if found else None


def _is_path_mutation(call: ast.Call, name: str) -> bool:
    if name == "open":  # many classes have an open(); that of Path takes its mode first
        modes = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "mode")]
        texts = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
        return any(isinstance(text, str) and _is_write_mode(text) for text in texts)
    if name == "replace":  # of Path: one argument; of str: two; of datetime: keywords
        return len(call.args) == 1 and not call.keywords
    return name in _PATH_MUTATIONS


def _opens_for_writing(call: ast.Call, position: int) -> bool:
    """Say whether a call of ``open`` may write: its mode says so, or is not a constant."""
    mode = call.args[position] if len(call.args) > position else None
    mode = next((keyword.value for keyword in call.keywords if keyword.arg == "mode"), mode)
    if mode is None:
        return False
    if isinstance(mode, ast.Constant) and isinstance(mode.value, str):
        return _is_write_mode(mode.value)
    return True


def _is_write_mode(mode: str) -> bool:
    return set(mode) <= set("rwxabt+") and bool(set(mode) & set("wax+"))


def _has_write_flag(call: ast.Call) -> bool:
    attributes = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
    return bool(attributes & _WRITE_FLAGS)


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name or "pyrep")
def test_imports_point_downwards(module: Module) -> None:
    if not module.name:
        assert not [name for name in _imports(module) if name.startswith("pyrep.")]
        return
    faults = [_import_fault(module.name, name) for name in _imports(module)]
    assert not list(filter(None, faults))


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name or "pyrep")
def test_files_are_changed_through_osfs_only(module: Module) -> None:
    if module.name == "osfs":
        assert list(_mutations(module.tree))
        return
    found = [
        f"{module.path.name}:{line}: {name}"
        for line, name in _mutations(module.tree)
        if (module.name, name) not in MUTATIONS_ALLOWED
    ]
    assert not found


def test_every_exception_is_still_needed() -> None:
    used = {(module.name, name) for module in modules() for _, name in _mutations(module.tree)}
    assert not set(MUTATIONS_ALLOWED) - used
    assert all(MUTATIONS_ALLOWED.values())


def test_table_has_only_what_exists() -> None:
    there = {module.name for module in modules()} | NATIVE
    assert [name for layer in LAYERS for name in layer if name not in there] == []
    assert [name for names in FENCES.values() for name in names if name not in there] == []


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module.name: {
            name.removeprefix("pyrep.")
            for name in _imports(module)
            if name.startswith("pyrep.") and name != f"pyrep.{module.name}"
        }
        for module in modules()
    }
    order = TopologicalSorter(graph)
    assert len(list(order.static_order())) >= len(graph)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("ids", "pyrep.osfs"),
        ("restore.plan", "pyrep.tenant.position"),
        ("tenant.sync", "pyrep.restore.execute"),
        ("storage.file", "pyrep.tenant.sync"),
        ("storage.file", "pyrep.config.model"),
        ("tenant.sync", "pyrep.store"),
        ("store", "pyrep.cli.main"),
        ("daemon", "pyrep.cli.main"),
        ("surprise", "pyrep.errors"),
        ("tenant.sync", "apsw"),
        ("config.model", "yaml"),
        ("storage.file", "boto3"),
        ("store", "requests"),
    ],
)
def test_forbidden_imports_are_seen(importer: str, imported: str) -> None:
    assert _import_fault(importer, imported)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("tenant.sync", "pyrep.tenant.diff"),
        ("tenant.lineage", "pyrep.restore.plan"),
        ("restore.execute", "pyrep.tenant.position"),
        ("config.expand", "pyrep.storage.registry"),
        ("restore.execute", "pyrep.ltxio"),
        ("__main__", "pyrep.cli.main"),
        ("cli.main", "click"),
        ("config.load", "yaml"),
        ("catalog.file", "apsw.ext"),
        ("store", "concurrent.futures"),
        ("cli.version", "pyrep"),
    ],
)
def test_allowed_imports_pass(importer: str, imported: str) -> None:
    assert _import_fault(importer, imported) is None


@pytest.mark.parametrize(
    "code",
    [
        "os.rename(a, b)",
        "os.unlink(a)",
        "os.truncate(a, 0)",
        "os.link(a, b)",
        "open(a, 'w')",
        "open(a, mode='ab')",
        "open(a, chosen)",
        "os.open(a, os.O_RDWR)",
        "os.open(a, os.O_WRONLY | os.O_CREAT)",
        "Path(a).write_text('x')",
        "(folder / 'x').open('r+b')",
        "path.unlink(missing_ok=True)",
        "path.replace(other)",
        "shutil.move(a, b)",
        "shutil.rmtree(a)",
        "tempfile.mkdtemp()",
        "from os import rename",
    ],
)
def test_changes_of_files_are_seen(code: str) -> None:
    assert list(_mutations(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "open(a)",
        "open(a, 'rb')",
        "path.open('rb')",
        "client.open(info)",
        "client.open('a wax seal')",
        "os.open(a, os.O_RDONLY | os.O_DIRECTORY)",
        "osfs.unlink('stage.unlink', a)",
        "text.replace('a', 'b')",
        "moment.replace(tzinfo=None)",
        "shutil.disk_usage(a)",
        "os.pread(fd, 10, 0)",
    ],
)
def test_reading_is_not_taken_for_a_change(code: str) -> None:
    assert not list(_mutations(ast.parse(code)))
