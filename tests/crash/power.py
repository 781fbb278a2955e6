"""What a power cut can leave of a directory: a model of a disk that keeps only what was synced.

A `Disk` follows recorded operations.  It knows the files as programs see them, and as they are on
the platter: a file's bytes since its last fsync, and a directory's names since its own last fsync,
may be there or not.  That is what POSIX promises and no more; journalling file systems keep more,
some of it in unlucky mixtures, which are drawn as well:

    synced      only what was synced, files and names
    all         everything, as after a kill
    names       all names, with files as they were synced: empty or stale
    lengths     all names and lengths, with zeros where bytes were not synced
    bytes       all bytes, but no name that was not synced
    random N    some writes and some names, drawn by the seed N; the order is no matter
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.crash.tracer import Operation

STATES: Final = ("synced", "all", "names", "lengths", "bytes")

Tree = dict[str, bytes | str | None]
"""Path below the root: bytes of a file, target of a link, or None for a directory."""


@dataclass(eq=False)
class Link:
    target: str


@dataclass(eq=False)
class File:
    now: bytes = b""
    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes since the last sync: offset and bytes, or a length and None for a truncation."""

    def change(self, offset: int, data: bytes | None) -> None:
        self.now = _changed(self.now, [(offset, data)])
        self.pending.append((offset, data))

    def sync(self) -> None:
        self.synced = self.now
        self.pending.clear()


@dataclass(eq=False)
class Directory:
    now: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)
    """Changes of names since the last sync, each one whole or not at all."""

    def change(self, names: dict[str, Node | None]) -> None:
        _rename(self.now, names)
        self.pending.append(names)

    def sync(self) -> None:
        self.synced = dict(self.now)
        self.pending.clear()


Node = Directory | File | Link


def _changed(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    if not changes:
        return content  # the same object: its hash is known
    new = bytearray(content)
    for offset, data in changes:
        if data is None:
            new[offset:] = bytes(max(0, offset - len(new)))
        else:
            new.extend(bytes(max(0, offset - len(new))))
            new[offset : offset + len(data)] = data
    return bytes(new)


def _rename(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """See the module.  Begins with a directory all of which is synced."""

    def __init__(self, root: Path) -> None:
        self._root = _read(root)

    def apply(self, operation: Operation) -> None:
        """Follow one operation that succeeded."""
        path = operation.path
        match operation.name:
            case "open":
                self._open(path, operation.flags)
            case "write" | "pwrite64":
                if (file := self._file(path)) is not None:
                    file.change(operation.offset, operation.data)
            case "ftruncate":
                if (file := self._file(path)) is not None:
                    file.change(operation.offset, None)
            case "fsync" | "fdatasync":
                node = self._find(path)
                if isinstance(node, File | Directory):
                    node.sync()
            case "unlink" | "rmdir":
                parent, name = self._parent(path)
                parent.change({name: None})
            case "mkdir":
                parent, name = self._parent(path)
                parent.change({name: Directory()})
            case "symlink":
                parent, name = self._parent(path)
                parent.change({name: Link(operation.other)})
            case "rename":
                self._move(path, operation.other)
            case _:
                raise NotImplementedError(str(operation))

    def _open(self, path: str, flags: int) -> None:
        parent, name = self._parent(path)
        node = parent.now.get(name)
        if node is None and flags & os.O_CREAT:
            parent.change({name: File()})
        elif isinstance(node, File) and flags & os.O_TRUNC:
            node.change(0, None)

    def _move(self, source: str, destination: str) -> None:
        parent, name = self._parent(source)
        to, new_name = self._parent(destination)
        node = parent.now[name]
        if parent is to:
            parent.change({name: None, new_name: node})
        else:  # two directories are synced apart, and may survive apart
            to.change({new_name: node})
            parent.change({name: None})

    def _parent(self, path: str) -> tuple[Directory, str]:
        head, _, name = path.rpartition("/")
        parent = self._find(head)
        if not isinstance(parent, Directory):
            raise FileNotFoundError(path)
        return parent, name

    def _file(self, path: str) -> File | None:
        node = self._find(path)
        return node if isinstance(node, File) else None  # a file that was removed while open

    def _find(self, path: str) -> Node | None:
        node: Node = self._root
        if not path:
            return node
        for name in path.split("/"):
            if not isinstance(node, Directory) or name not in node.now:
                return None
            node = node.now[name]
        return node

    # ── what is left ─────────────────────────────────────────────────────────────────────────────

    def after_power_cut(self, state: str) -> Tree:
        """The files that are left, in one of `STATES` or in `random N`."""
        everything, tree = state in ("all", "names", "lengths"), Tree()
        if state.startswith("random "):
            chance = random.Random(state)
            _walk(
                self._root,
                "",
                tree,
                lambda directory: _some_names(directory, chance),
                lambda file: _some_bytes(file, chance),
            )
        else:
            _walk(
                self._root,
                "",
                tree,
                lambda directory: directory.now if everything else directory.synced,
                _CONTENT[state],
            )
        return tree


def _lengths(file: File) -> bytes:
    if not file.pending:
        return file.synced
    return file.synced[: len(file.now)].ljust(len(file.now), b"\0")


_CONTENT: Final[dict[str, Callable[[File], bytes]]] = {
    "synced": lambda file: file.synced,
    "all": lambda file: file.now,
    "names": lambda file: file.synced,
    "lengths": _lengths,
    "bytes": lambda file: file.now,
}


def _some_names(directory: Directory, chance: random.Random) -> dict[str, Node]:
    names = dict(directory.synced)
    for change in directory.pending:
        if chance.random() < 0.5:
            _rename(names, change)
    return names


def _some_bytes(file: File, chance: random.Random) -> bytes:
    return _changed(file.synced, [each for each in file.pending if chance.random() < 0.5])


def _walk(
    directory: Directory,
    path: str,
    tree: Tree,
    names: Callable[[Directory], dict[str, Node]],
    content: Callable[[File], bytes],
) -> None:
    for name, node in sorted(names(directory).items()):
        below = f"{path}{name}"
        if isinstance(node, Directory):
            tree[below] = None
            _walk(node, f"{below}/", tree, names, content)
        else:
            tree[below] = node.target if isinstance(node, Link) else content(node)


def _read(path: Path) -> Directory:
    names: dict[str, Node] = {}
    for below in path.iterdir():
        if below.is_symlink():
            names[below.name] = Link(str(below.readlink()))
        elif below.is_dir():
            names[below.name] = _read(below)
        elif below.is_file():
            data = below.read_bytes()
            names[below.name] = File(data, data)
    return Directory(names, dict(names))


def read(root: Path) -> Tree:
    """The files under `root`."""
    return Disk(root).after_power_cut("all")


def key(tree: Tree) -> int:
    """Equal for equal trees, and most likely for those alone."""
    return hash(tuple(tree.items()))


def write(tree: Tree, root: Path) -> None:
    """Put the files under `root`, which is new."""
    root.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir()
        elif isinstance(content, str):
            (root / path).symlink_to(content)
        else:
            (root / path).write_bytes(content)
