"""The error tree.

Everything that virtintrospect raises on purpose derives from :class:`VirtIntrospectError`::

    VirtIntrospectError
    ├── UsageError                   exit 2   the request itself makes no sense
    │   └── UnsupportedError                  this target cannot do that; another can
    ├── NoSuchTargetError            exit 3   no such domain, image or process
    ├── MemoryAccessError            exit 4   guest memory cannot be reached
    │   ├── AccessDeniedError                 privileges are missing
    │   ├── TargetGoneError                   the guest's VMM went away, or is not there
    │   ├── EncryptedMemoryError              SEV, SEV-SNP, TDX: only ciphertext
    │   ├── FaultError                        no memory at this address
    │   ├── NotWritableError                  memory that must not be changed, or did not change
    │   └── ImageFormatError                  a memory image is damaged or unknown
    ├── GuestNotRecognisedError      exit 5   no known kernel in this memory
    │   ├── MissingTypesError                 kernel found, its types are not
    │   └── MissingSymbolsError               kernel found, its symbols are not
    ├── NotFoundError                exit 1
    │   ├── SymbolNotFoundError
    │   └── TypeNotFoundError                 type or member
    ├── CorruptDataError             exit 1   the guest's own data makes no sense
    └── OutputError                  exit 1   a file of ours cannot be written

The text of an error is one line that says what failed and where; ``hint`` says what to do
next. Data that a program may want (an address, a path, an offset) are attributes.
"""

from __future__ import annotations


class VirtIntrospectError(Exception):
    """Base of all errors of this project.

    :param message: one line: what failed, and where.
    :param hint: one line: what to do about it; empty when there is nothing to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(VirtIntrospectError):
    """The request itself is wrong: a bad option, an address that is no number."""

    exit_code = 2


class UnsupportedError(UsageError):
    """A target cannot do what is asked of it; the hint names one that can."""


class NoSuchTargetError(VirtIntrospectError):
    """No such domain, memory image or process."""

    exit_code = 3


class MemoryAccessError(VirtIntrospectError):
    """Guest memory cannot be reached at all, or not at this place."""

    exit_code = 4


class AccessDeniedError(MemoryAccessError):
    """The caller lacks the privilege to read this guest's memory."""


class TargetGoneError(MemoryAccessError):
    """The domain is shut off, its VMM process stopped, or the PID belongs to somebody else now."""


class EncryptedMemoryError(MemoryAccessError):
    """A confidential guest (SEV, SEV-SNP, TDX): the host sees only ciphertext."""


class FaultError(MemoryAccessError):
    """There is no memory at an address.

    :param address: first address that could not be read.
    :param size: bytes that were asked for.
    :param kind: address space of ``address``, as shown to people.
    """

    def __init__(self, address: int, size: int, *, kind: str = "physical", hint: str = "") -> None:
        super().__init__(f"no memory at {kind} address {address:#x} ({size} bytes)", hint=hint)
        self.address = address
        self.size = size
        self.kind = kind


class NotWritableError(MemoryAccessError):
    """There is memory at an address, but it must not be written, or did not take what was.

    :param address: first address that the problem is about.
    :param problem: what is wrong with it.
    :param kind: address space of ``address``, as shown to people.
    """

    def __init__(
        self, address: int, problem: str, *, kind: str = "physical", hint: str = ""
    ) -> None:
        super().__init__(f"{kind} address {address:#x}: {problem}", hint=hint)
        self.address = address
        self.kind = kind


class ImageFormatError(MemoryAccessError):
    """A memory image is truncated, contradicts itself, or has no known format.

    :param path: the file.
    :param offset: byte offset in the file where reading stopped making sense; 0 for all of it.
    """

    def __init__(self, path: str, offset: int, problem: str, *, hint: str = "") -> None:
        where = f" (at file offset {offset:#x})" if offset else ""
        super().__init__(f"{path}: {problem}{where}", hint=hint)
        self.path = path
        self.offset = offset


class GuestNotRecognisedError(VirtIntrospectError):
    """No kernel that we know was found in this memory."""

    exit_code = 5


class MissingTypesError(GuestNotRecognisedError):
    """The kernel was found, but it carries no type information (BTF)."""


class MissingSymbolsError(GuestNotRecognisedError):
    """The kernel was found, but it carries no symbols, or none of its data."""


class NotFoundError(VirtIntrospectError):
    """Something was asked for by a name that this kernel does not have."""


class SymbolNotFoundError(NotFoundError):
    """The kernel has no such symbol."""

    def __init__(self, name: str, *, hint: str = "") -> None:
        super().__init__(f"the guest's kernel has no symbol {name!r}", hint=hint)
        self.name = name


class TypeNotFoundError(NotFoundError):
    """The kernel has no such type, or the type has no such member."""

    def __init__(self, name: str, member: str = "", *, hint: str = "") -> None:
        what = f"type {name!r} has no member {member!r}" if member else f"no type {name!r}"
        super().__init__(f"the guest's kernel: {what}", hint=hint)
        self.name = name
        self.member = member


class CorruptDataError(VirtIntrospectError):
    """Guest data that contradicts itself: a list with a cycle, a length out of bounds.

    :param address: guest address of the offending structure.
    """

    def __init__(self, problem: str, address: int, *, hint: str = "") -> None:
        super().__init__(f"{problem} (at {address:#x})", hint=hint)
        self.address = address


class OutputError(VirtIntrospectError):
    """A file that the user wants cannot be written: no space, no permission."""
