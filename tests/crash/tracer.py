"""Runs a function in a child process and stops it at its file operations, SQLite's included.

The child is forked from this process, so what is imported here need not be imported again, and is
traced by ptrace(2).  A seccomp filter lets through everything but the calls of `_CALLS`.  Those
that touch a file under the watched directory are numbered from 1 and shown to a callback, which
lets them be, kills the process before they happen, or makes them fail.

Linux on x86-64 only; `supported` says so.  A tracer owns all children of its process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_WALL: Final = 0x40000000

# <sys/ptrace.h>
_TRACEME, _PEEKUSER, _POKEUSER, _CONT, _SYSCALL = 0, 3, 6, 7, 24
_SETOPTIONS: Final = 0x4200
_OPTIONS: Final = 1 | 2 | 4 | 8 | 0x80 | 0x100000  # sysgood, fork, vfork, clone, seccomp, exitkill
_EVENT_SECCOMP: Final = 7
# <sys/user.h>: offsets in struct user_regs_struct
_RAX, _ORIG_RAX = 80, 120
_ARGUMENTS: Final = (112, 104, 96, 56, 72, 44 * 0 + 64)  # rdi, rsi, rdx, r10, r8, r9

# asm/unistd_64.h.  f: a descriptor comes first; p: a path; a: a directory's descriptor and a path
_CALLS: Final[dict[int, tuple[str, str]]] = {
    1: ("write", "f"), 18: ("pwrite64", "f"), 20: ("writev", "f"), 296: ("pwritev", "f"),
    328: ("pwritev2", "f"), 40: ("sendfile", "f"), 326: ("copy_file_range", "-"),
    74: ("fsync", "f"), 75: ("fdatasync", "f"), 277: ("sync_file_range", "f"),
    306: ("syncfs", "f"), 77: ("ftruncate", "f"), 285: ("fallocate", "f"),
    76: ("truncate", "p"), 2: ("open", "p"), 85: ("creat", "p"), 257: ("openat", "a"),
    437: ("openat2", "a"),
    82: ("rename", "p"), 264: ("renameat", "a"), 316: ("renameat2", "a"),
    86: ("link", "p"), 265: ("linkat", "a"), 88: ("symlink", "p"), 266: ("symlinkat", "-"),
    87: ("unlink", "p"), 263: ("unlinkat", "a"), 84: ("rmdir", "p"),
    83: ("mkdir", "p"), 258: ("mkdirat", "a"),
}  # fmt: skip
_UNMODELLED: Final = frozenset(
    {
        "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "fallocate", "truncate",
        "creat", "openat2", "link", "linkat", "syncfs", "sync_file_range", "symlinkat",
    }
)  # fmt: skip
"""Calls that the code under test does not make; a recording refuses them rather than miss them."""
_AT_REMOVEDIR: Final = 0x200
_WRITING: Final = frozenset({"write", "pwrite64"})
_OPENING: Final = frozenset({"open", "openat"})


def supported() -> str:
    """Why crashes cannot be traced here; empty when they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "file operations are traced on Linux on x86-64 only"
    return ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One file operation, about to happen or done.

    Attributes:
        number: counts from 1 within the run.
        name: of the system call, without its variants: `open`, `write`, `pwrite64`, `rename`…
        path: below the watched directory; of the file itself when the call names a descriptor.
        other: destination of a rename; target of a symbolic link.
        data: bytes to be written.  Empty unless recording.
        offset: of `data` or of a truncation; -1 is the file's own position.
        flags: of an open.
        result: what the call returned; None before it happened.
    """

    number: int
    name: str
    path: str
    other: str = ""
    data: bytes = b""
    offset: int = -1
    flags: int = 0
    result: int | None = None

    def __str__(self) -> str:
        return f"{self.number} {self.name} {self.path[-60:]}"

    @property
    def changes(self) -> bool:
        """Whether it can change the disk, or what a power cut leaves of it."""
        return self.name not in _OPENING or bool(self.flags & (os.O_CREAT | os.O_TRUNC))

    @property
    def takes_room(self) -> bool:
        """Whether a full disk can refuse it."""
        if self.name in _OPENING:
            return bool(self.flags & os.O_CREAT)
        return self.name in _WRITING or self.name in {
            "ftruncate", "fsync", "fdatasync", "mkdir", "symlink", "rename",
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ended:
    """How the child ended: `status` is its exit status, negative for a signal."""

    status: int
    operations: int
    killed_at: Operation | None


KILL: Final = -1
Decide = Callable[[Operation], int]
"""What becomes of an operation: 0 it happens, `KILL`, or the number of the error it gives."""


def run(
    body: Callable[[], int],
    watched: Path,
    decide: Decide,
    record: Callable[[Operation], None] | None = None,
) -> Ended:
    """Run `body` in a traced child.

    Args:
        body: its result is the exit status.
        watched: operations on files below are numbered and shown.
        decide: called for every operation before it happens.
        record: called for every operation that succeeded, with its data.
    """
    tracer = _Tracer(os.path.realpath(watched), decide, record)
    child = os.fork()
    if child == 0:
        _child(body)
    return tracer.follow(child)


def _child(body: Callable[[], int]) -> None:
    status = 120
    try:
        _filter()
        _ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class _Tracer:
    def __init__(
        self,
        watched: str,
        decide: Decide,
        record: Callable[[Operation], None] | None,
    ) -> None:
        self._watched = watched
        self._decide = decide
        self._record = record
        self._count = 0
        self._killed_at: Operation | None = None
        self._entered: dict[int, tuple[Operation, int]] = {}

    def follow(self, child: int) -> Ended:
        os.waitpid(child, _WALL)
        _ptrace(_SETOPTIONS, child, 0, _OPTIONS)
        _ptrace(_CONT, child, 0, 0)
        status = 0
        alive = {child}
        while alive:
            task, waited = os.waitpid(-1, _WALL)
            if os.WIFEXITED(waited) or os.WIFSIGNALED(waited):
                alive.discard(task)
                if task == child:
                    status = os.waitstatus_to_exitcode(waited)
                    self._end(alive)
                continue
            alive.add(task)
            self._stopped(child, task, waited)
        return Ended(status, self._count, self._killed_at)

    @staticmethod
    def _end(alive: set[int]) -> None:
        """What the child started ends with it, as with a machine."""
        for task in alive:
            try:
                os.kill(task, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _stopped(self, child: int, task: int, waited: int) -> None:
        stop = os.WSTOPSIG(waited)
        event = waited >> 16
        how, deliver = _CONT, 0
        try:
            if event == _EVENT_SECCOMP:
                how = self._enter(child, task)
            elif stop == signal.SIGTRAP | 0x80:
                self._leave(task)
            elif event == 0 and stop not in (signal.SIGSTOP, signal.SIGTRAP):
                deliver = stop
            _ptrace(how, task, 0, deliver)
        except ProcessLookupError:
            return  # it was killed in between

    def _enter(self, child: int, task: int) -> int:
        operation = self._operation(task)
        if operation is None or not operation.changes:
            return _CONT
        self._count += 1
        verdict = self._decide(operation)
        if verdict == KILL:
            self._killed_at = operation
            os.kill(child, signal.SIGKILL)
            raise ProcessLookupError
        if verdict:
            _ptrace(_POKEUSER, task, _ORIG_RAX, -1)
        elif self._record is None:
            return _CONT
        self._entered[task] = (operation, verdict)
        return _SYSCALL

    def _leave(self, task: int) -> None:
        entered = self._entered.get(task)
        if entered is None:
            return
        result = ctypes.c_long(_ptrace(_PEEKUSER, task, _RAX, 0)).value
        if result == -errno.ENOSYS and not entered[1]:
            return  # the stop at its entry; the one at its end is still to come
        del self._entered[task]
        operation, verdict = entered
        if verdict:
            _ptrace(_POKEUSER, task, _RAX, -verdict)
        elif result >= 0 and self._record is not None:
            if operation.name in _UNMODELLED:
                raise NotImplementedError(f"{operation} cannot be recorded")
            self._record(_with_result(operation, result))

    # ── what the call says ───────────────────────────────────────────────────────────────────────

    def _operation(self, task: int) -> Operation | None:
        number = _ptrace(_PEEKUSER, task, _ORIG_RAX, 0)
        if number not in _CALLS:
            return None
        name, kind = _CALLS[number]
        arguments = [_ptrace(_PEEKUSER, task, offset, 0) for offset in _ARGUMENTS]
        first = ctypes.c_int(arguments[0]).value
        other, flags, offset, data = "", 0, -1, b""
        if kind == "f":
            path = _link(task, f"fd/{first}")
        elif kind == "p":
            path = _at(task, _AT_FDCWD, _text(task, arguments[0]))
            arguments.insert(0, 0)
        elif kind == "a":
            path = _at(task, first, _text(task, arguments[1]))
        elif name == "symlinkat":
            path = _at(task, ctypes.c_int(arguments[1]).value, _text(task, arguments[2]))
        else:  # copy_file_range
            path = _link(task, f"fd/{ctypes.c_int(arguments[2]).value}")
        plain = name.removesuffix("2").removesuffix("at")
        if plain == "symlink":
            source, link = (0, 2) if name == "symlinkat" else (1, 2)
            other = _text(task, arguments[source])
            path = (
                path if name == "symlinkat" else _at(task, _AT_FDCWD, _text(task, arguments[link]))
            )
        if not f"{path}/".startswith(f"{self._watched}/"):
            return None
        path = self._below(path)
        if plain == "open":
            flags = arguments[2]
        elif plain == "rename":
            where, to = (first, 3) if kind == "a" else (_AT_FDCWD, 2)
            where = ctypes.c_int(arguments[2]).value if kind == "a" else where
            other = self._below(_at(task, where, _text(task, arguments[to])))
        elif plain == "unlink" and kind == "a" and arguments[2] & _AT_REMOVEDIR:
            plain = "rmdir"
        elif plain == "ftruncate":
            offset = arguments[1]
        elif plain in _WRITING:
            offset = arguments[3] if plain == "pwrite64" else _position(task, first)
            if self._record is not None:
                data = _memory(task, arguments[1], arguments[2])
        return Operation(self._count + 1, plain, path, other, data, offset, flags)

    def _below(self, path: str) -> str:
        return path[len(self._watched) + 1 :]


def _with_result(operation: Operation, result: int) -> Operation:
    return Operation(
        operation.number, operation.name, operation.path, operation.other,
        operation.data[:result] if operation.data else b"",
        operation.offset, operation.flags, result,
    )  # fmt: skip


def _link(task: int, name: str) -> str:
    try:
        return str(Path(f"/proc/{task}/{name}").readlink())
    except OSError:
        return ""


def _at(task: int, descriptor: int, path: str) -> str:
    if not path.startswith("/"):
        directory = _link(task, "cwd" if descriptor == _AT_FDCWD else f"fd/{descriptor}")
        path = f"{directory}/{path}"
    head, _, tail = path.rstrip("/").rpartition("/")
    # the last name is what the call is about: a link there is not followed
    return f"{os.path.realpath(head)}/{tail}"


def _position(task: int, descriptor: int) -> int:
    text = Path(f"/proc/{task}/fdinfo/{descriptor}").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if int(fields["flags"], 8) & os.O_APPEND:
        return Path(f"/proc/{task}/fd/{descriptor}").stat().st_size
    return int(fields["pos"])


def _memory(task: int, address: int, length: int) -> bytes:
    with Path(f"/proc/{task}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def _text(task: int, address: int) -> str:
    text = b""
    while b"\0" not in text:
        # not across a page, which may be the last one
        text += _memory(task, address + len(text), 256 - (address + len(text)) % 256)
    return os.fsdecode(text.partition(b"\0")[0])


# ── the kernel ───────────────────────────────────────────────────────────────────────────────────

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong)


def _ptrace(request: int, task: int, address: int, data: int) -> int:
    ctypes.set_errno(0)
    # glibc returns what PEEKUSER found
    result: int = _libc.ptrace(request, task, address & (2**64 - 1), data & (2**64 - 1))
    if result == -1 and (number := ctypes.get_errno()):
        raise OSError(number, os.strerror(number))
    return result


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _filter() -> None:
    """Show the calls of `_CALLS` to the tracer, and allow all.  Source: <linux/seccomp.h>."""
    load, jump_if_equal, give_back = 0x20, 0x15, 0x06
    allow, trace = 0x7FFF0000, 0x7FF00000
    numbers = sorted(_CALLS)
    code = [struct.pack("HBBI", load, 0, 0, 0)]
    for index, number in enumerate(numbers):
        code.append(struct.pack("HBBI", jump_if_equal, len(numbers) - index, 0, number))
    code.append(struct.pack("HBBI", give_back, 0, 0, allow))
    code.append(struct.pack("HBBI", give_back, 0, 0, trace))
    instructions = ctypes.create_string_buffer(b"".join(code))
    program = _Program(len(code), ctypes.addressof(instructions))
    set_no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if _libc.prctl(set_no_new_privileges, 1, 0, 0, 0) or _libc.prctl(
        set_seccomp, filter_mode, ctypes.byref(program), 0, 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"no seccomp filter: {os.strerror(number)}")
