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
_ARGUMENTS: Final = (112, 104, 96, 56, 72, 64)  # rdi, rsi, rdx, r10, r8, r9


@dataclass(frozen=True, slots=True)
class _Call:
    """A system call, and which of its arguments say what; -1 is none.

    `at` and `to_at` are descriptors of the directories that `path` and `to` begin in; the working
    directory without one.
    """

    name: str
    descriptor: int = -1
    path: int = -1
    at: int = -1
    to: int = -1
    to_at: int = -1
    target: int = -1
    flags: int = -1
    offset: int = -1
    modelled: bool = True


def _unmodelled(name: str, **arguments: int) -> _Call:
    """One that the code under test does not make: a recording refuses it rather than miss it."""
    return _Call(name, modelled=False, **arguments)


_CALLS: Final[dict[int, _Call]] = {  # asm/unistd_64.h
    1: _Call("write", descriptor=0),
    18: _Call("pwrite64", descriptor=0, offset=3),
    74: _Call("fsync", descriptor=0),
    75: _Call("fdatasync", descriptor=0),
    77: _Call("ftruncate", descriptor=0, offset=1),
    2: _Call("open", path=0, flags=1),
    257: _Call("open", at=0, path=1, flags=2),
    82: _Call("rename", path=0, to=1),
    264: _Call("rename", at=0, path=1, to_at=2, to=3),
    316: _Call("rename", at=0, path=1, to_at=2, to=3),
    88: _Call("symlink", target=0, path=1),
    266: _Call("symlink", target=0, at=1, path=2),
    87: _Call("unlink", path=0),
    263: _Call("unlink", at=0, path=1, flags=2),
    84: _Call("rmdir", path=0),
    83: _Call("mkdir", path=0),
    258: _Call("mkdir", at=0, path=1),
    20: _unmodelled("writev", descriptor=0),
    296: _unmodelled("pwritev", descriptor=0),
    328: _unmodelled("pwritev2", descriptor=0),
    40: _unmodelled("sendfile", descriptor=0),
    326: _unmodelled("copy_file_range", descriptor=2),
    277: _unmodelled("sync_file_range", descriptor=0),
    306: _unmodelled("syncfs", descriptor=0),
    285: _unmodelled("fallocate", descriptor=0),
    76: _unmodelled("truncate", path=0),
    85: _unmodelled("creat", path=0),
    437: _unmodelled("openat2", at=0, path=1),
    86: _unmodelled("link", to=0, path=1),
    265: _unmodelled("linkat", to_at=0, to=1, at=2, path=3),
}
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
            self._record(_with_result(operation, result))

    # ── what the call says ───────────────────────────────────────────────────────────────────────

    def _operation(self, task: int) -> Operation | None:
        """What the call is about; None when it touches nothing below the watched directory."""
        call = _CALLS.get(_ptrace(_PEEKUSER, task, _ORIG_RAX, 0))
        if call is None:
            return None
        arguments = [_ptrace(_PEEKUSER, task, offset, 0) for offset in _ARGUMENTS]
        if call.descriptor >= 0:
            path = _link(task, f"fd/{ctypes.c_int(arguments[call.descriptor]).value}")
        else:
            path = _named(task, arguments, call.at, call.path)
        if not f"{path}/".startswith(f"{self._watched}/"):
            return None
        name, other, data = call.name, "", b""
        flags = arguments[call.flags] if call.flags >= 0 else 0
        offset = arguments[call.offset] if call.offset >= 0 else -1
        if call.to >= 0:
            other = self._below(_named(task, arguments, call.to_at, call.to))
        elif call.target >= 0:
            other = _text(task, arguments[call.target])
        elif name == "unlink" and flags & _AT_REMOVEDIR:
            name = "rmdir"
        elif name in _WRITING:
            if offset < 0:
                offset = _position(task, arguments[0])
            if self._record is not None:
                data = _memory(task, arguments[1], arguments[2])
        operation = Operation(self._count + 1, name, self._below(path), other, data, offset, flags)
        if self._record is not None and not call.modelled:
            raise NotImplementedError(f"{operation} cannot be recorded")
        return operation

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


def _named(task: int, arguments: list[int], at: int, name: int) -> str:
    """The absolute path that a call names."""
    path = _text(task, arguments[name])
    if not path.startswith("/"):
        descriptor = ctypes.c_int(arguments[at]).value if at >= 0 else _AT_FDCWD
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
