"""Every table in which the kernel looks for sockets.

What is in a table is a socket even where no process has it open any more (TIME_WAIT, requests,
the kernel's own), and even where something hid it from the processes' files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from virtintrospect.errors import FaultError, NotFoundError
from virtintrospect.guests.linux.chains import heads, walk_chains

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Most buckets of a table: ehash has half a million at most unless thash_entries= says more
#: (tcp_init() of net/ipv4/tcp.c); udp_table 65,536 (net/ipv4/udp.c).
_MAX_BUCKETS = 1 << 22
#: UNIX_HASH_SIZE (include/net/af_unix.h): a half for each of names and unnamed sockets.
_UNIX_BUCKETS = 512
#: MAX_LINKS (include/uapi/linux/netlink.h): protocols of netlink.
_NETLINK_PROTOCOLS = 32


#: Buckets, as a power of two, that cost as much as one entry.
_DENSITY = 6
#: First nodes of chains, and where a socket has its node.
Chains = tuple[list[int], int]


def hashed(guest: LinuxGuest, nets: list[int], budget: Budget) -> list[int]:
    """Addresses of all sockets that any table has, each once.

    :param nets: address of each ``struct net``.
    """
    found: dict[int, None] = {}
    tables = _Tables(guest, nets, budget)
    for read in (tables.tcp, tables.udp, tables.fixed, tables.unix, tables.packet, tables.netlink):
        try:
            for chains, node_at in read():
                for link in walk_chains(guest, chains, budget):
                    if link.node >= node_at:
                        found[link.node - node_at] = None
        except NotFoundError as error:
            guest.note(f"no table of sockets: {error}", 0)
        except FaultError as error:
            guest.note("unreadable table of sockets", error.address)
    return list(found)


class _Tables:
    """The tables, one method for each family."""

    def __init__(self, guest: LinuxGuest, nets: list[int], budget: Budget) -> None:
        self._guest = guest
        self._nets = nets
        self._budget = budget
        self._pointer = guest.kernel.pointer_size
        #: ``sk_node``, a union with ``sk_nulls_node``: most tables link sockets by it.
        self._node = guest.types.offsetof("sock", "__sk_common.skc_node")

    def _of_nets(self, path: str) -> list[int]:
        """A pointer of each namespace; null ones are left out."""
        layout = self._guest.layout("net", {"it": path}, text=())
        return [it for it in layout.lists(self._guest.kernel, self._nets, [])["it"] if it]

    def tcp(self) -> Iterator[Chains]:
        """Connections, TIME_WAIT and requests (``ehash``), and listeners.

        See net/ipv4/inet_hashtables.c. Since 6.1 a namespace may have an ``ehash`` of its own
        (net.ipv4.tcp_child_ehash_entries).
        """
        types, node_at = self._guest.types, self._node
        main = self._guest.symbols.address("tcp_hashinfo")
        infos = list(dict.fromkeys([main, *self._of_nets("ipv4.tcp_death_row.hashinfo?")]))
        members = {"ehash": "ehash", "mask": "ehash_mask"}
        tables = self._guest.layout("inet_hashinfo", members, text=()).lists(
            self._guest.kernel, infos, []
        )
        stride = types.sizeof("inet_ehash_bucket")
        for array, mask in dict.fromkeys(zip(tables["ehash"], tables["mask"], strict=True)):
            yield self._table(array, None if mask is None else mask + 1, stride), node_at
        stride = types.sizeof("inet_listen_hashbucket")
        head_at = types.offsetof("inet_listen_hashbucket", "nulls_head")
        if types.has("inet_hashinfo", "listening_hash"):  # until 5.19, commit cae3873c5b3a
            member = types.resolve("inet_hashinfo", "listening_hash")[-1]
            array, count = main + member.offset, member.size // max(stride, 1)
        else:
            members = {"lhash2": "lhash2", "mask": "lhash2_mask"}
            listeners = self._guest.layout("inet_hashinfo", members, text=()).read(
                self._guest.kernel, main
            )
            array, count = listeners["lhash2"], listeners["mask"] + 1
        yield self._table(array, count, stride, head_at), node_at

    def udp(self) -> Iterator[Chains]:
        """UDP and, until 7.0, UDP-Lite (net/ipv4/udp.c); a namespace may have its own since 6.2."""
        tables = [self._guest.symbols.address("udp_table")]
        if "udplite_table" in self._guest.symbols:
            tables.append(self._guest.symbols.address("udplite_table"))
        tables = list(dict.fromkeys([*tables, *self._of_nets("ipv4.udp_table?")]))
        layout = self._guest.layout("udp_table", {"hash": "hash", "mask": "mask"}, text=())
        columns = layout.lists(self._guest.kernel, tables, [])
        stride = self._guest.types.sizeof("udp_hslot")
        head_at = self._guest.types.offsetof("udp_hslot", "head")
        for array, mask in zip(columns["hash"], columns["mask"], strict=True):
            count = None if mask is None else mask + 1
            yield self._table(array, count, stride, head_at), self._node

    def fixed(self) -> Iterator[Chains]:
        """Raw sockets and those of unprivileged ping: tables that are one array."""
        for symbol, structure, member in (
            ("raw_v4_hashinfo", "raw_hashinfo", "ht"),
            ("raw_v6_hashinfo", "raw_hashinfo", "ht"),
            ("ping_table", "ping_table", "hash"),
        ):
            if symbol in self._guest.symbols and self._guest.types.has(structure, member):
                field = self._guest.types.resolve(structure, member)[-1]
                array = self._guest.symbols.address(symbol) + field.offset
                yield self._table(array, field.size // self._pointer, self._pointer), self._node

    def unix(self) -> Iterator[Chains]:
        """UNIX sockets: one table until 6.0, then one a namespace (commit 51bae889fe11)."""
        if "unix_socket_table" in self._guest.symbols:
            arrays = [self._guest.symbols.address("unix_socket_table")]
        else:
            arrays = self._of_nets("unx.table.buckets")
        for array in arrays:
            yield self._table(array, _UNIX_BUCKETS, self._pointer), self._node

    def packet(self) -> Iterator[Chains]:
        """Packet sockets: a list in each namespace (net/packet/af_packet.c)."""
        if self._guest.types.has("net", "packet"):
            yield self._of_nets("packet.sklist.first"), self._node

    def netlink(self) -> Iterator[Chains]:
        """Netlink: a resizable hash table for each protocol (net/netlink/af_netlink.c)."""
        types = self._guest.types
        tables, size = self._guest.pointer("nl_table"), types.sizeof("netlink_table")
        layout = self._guest.layout("netlink_table", {"tbl": "hash.tbl"}, text=())
        addresses = [tables + number * size for number in range(_NETLINK_PROTOCOLS)]
        pending = layout.lists(self._guest.kernel, addresses, [])["tbl"]
        members = {"size": "size", "nest": "nest", "future": "future_tbl"}
        layout = self._guest.layout("bucket_table", members, text=())
        buckets_at = types.offsetof("bucket_table", "buckets")
        node_at = types.offsetof("netlink_sock", "node")
        seen: set[int] = set()
        while pending := [table for table in pending if table and table not in seen]:
            seen.update(pending)
            columns = layout.lists(self._guest.kernel, pending, [])
            for table, count, nested in zip(pending, columns["size"], columns["nest"], strict=True):
                if nested:
                    self._guest.note("nested hash table of netlink sockets", table)
                    continue
                yield self._table(table + buckets_at, count, self._pointer, locks=True), node_at
            # While a table grows, its entries move to the next one (lib/rhashtable.c).
            pending = columns["future"] if len(seen) < 2 * _NETLINK_PROTOCOLS else []

    def _table(
        self,
        array: int | None,
        count: int | None,
        stride: int,
        head_at: int = 0,
        *,
        locks: bool = False,
    ) -> list[int]:
        """First nodes of a table's chains.

        :param locks: the lowest bit of a bucket says that it is locked (lib/rhashtable.c); without,
            it marks an empty bucket (include/linux/list_nulls.h).
        """
        sound = 0 < stride <= 4096 and not stride % self._pointer
        if not array or not count or count > _MAX_BUCKETS or not sound:
            self._guest.note(f"table of sockets with {count} buckets", array or 0)
            return []
        if not self._budget.follow(count >> _DENSITY or 1) or self._budget.late():
            return []
        try:
            return heads(
                self._guest, array, count, self._budget, stride=stride, offset=head_at, locks=locks
            )
        except FaultError as error:
            self._guest.note("unreadable table of sockets", error.address)
            return []
