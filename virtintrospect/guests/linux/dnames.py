"""Names of files that no directory holds: pipes, sockets, eventfds, namespaces, memfds.

Their file systems make the name up when somebody asks (``dentry_operations.d_dname``, called
by ``d_path()``, fs/d_path.c); which function it is tells the form of the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Longest name of a kind of namespace, or of a dma-buf (DMA_BUF_NAME_LEN).
_MAX_LABEL = 64


def made_up_names(
    guest: LinuxGuest, dentries: Sequence[int], names: Sequence[bytes]
) -> list[bytes]:
    """What /proc/PID/fd shows for dentries without a directory.

    :param names: the dentries' own names (``d_name``).
    """
    layout = guest.layout(
        "dentry",
        {"function": "d_op.d_dname", "inode": "d_inode", "number": "d_inode.i_ino"},
        text=(),
    )
    columns = layout.lists(guest.kernel, dentries, [])
    forms = _forms(guest)
    labels = _labels(guest, columns["function"], dentries, columns["inode"])
    return [
        forms.get(function, _simple)(name, 0 if number is None else number, label)
        for function, name, number, label in zip(
            columns["function"], names, columns["number"], labels, strict=True
        )
    ]


_Form = Callable[[bytes, int, bytes], bytes]


def _simple(name: bytes, _number: int, _label: bytes) -> bytes:
    return b"/" + name + b" (deleted)"


#: By the name of the function: fs/pipe.c, net/socket.c, fs/anon_inodes.c, fs/nsfs.c,
#: fs/pidfs.c (which says for lsof's sake what anon_inodes did), drivers/dma-buf/dma-buf.c.
_FORMS: dict[str, _Form] = {
    "pipefs_dname": lambda _name, number, _label: b"pipe:[%d]" % number,
    "sockfs_dname": lambda _name, number, _label: b"socket:[%d]" % number,
    "anon_inodefs_dname": lambda name, _number, _label: b"anon_inode:" + name,
    "pidfs_dname": lambda _name, _number, _label: b"anon_inode:[pidfd]",
    "ns_dname": lambda _name, number, label: b"%s:[%d]" % (label, number),
    "dmabuffs_dname": lambda name, _number, label: b"/%s:%s" % (name, label),
    "simple_dname": _simple,
}


def _forms(guest: LinuxGuest) -> dict[int | None, _Form]:
    symbols = guest.symbols
    return {symbols.address(name): form for name, form in _FORMS.items() if name in symbols}


def _labels(
    guest: LinuxGuest,
    functions: list[int | None],
    dentries: Sequence[int],
    inodes: list[int | None],
) -> list[bytes]:
    """The kind of a namespace (``ns_common.ops``), the name that a dma-buf was given."""
    labels = [b""] * len(functions)
    wanted: list[tuple[str, Sequence[int | None], str, str, str]] = [
        ("ns_dname", inodes, "inode", "i_private", "ns"),
        ("dmabuffs_dname", dentries, "dentry", "d_fsdata", "dma_buf"),
    ]
    for function, objects, structure, member, kind in wanted:
        if function not in guest.symbols:
            continue
        address = guest.symbols.address(function)
        places = [
            index for index, found in enumerate(functions) if found == address and objects[index]
        ]
        if not places:
            continue
        layout = guest.layout(structure, {"private": member}, text=())
        owners = [objects[index] or 0 for index in places]
        private = layout.lists(guest.kernel, owners, [])["private"]
        if kind == "ns":
            inner = guest.layout("ns_common", {"name": "ops.name"}, text=())
        else:
            inner = guest.layout("dma_buf", {"name": "name"}, text=())
        pointers = inner.lists(guest.kernel, [pointer or 0 for pointer in private], [])["name"]
        found = guest.kernel.strings([pointer or 0 for pointer in pointers], _MAX_LABEL)
        for index, label in zip(places, found, strict=True):
            labels[index] = label or b""
    return labels
