"""A real guest's RAM, bent in chosen places: what a hostile kernel could show us.

Every mutation follows from its seed, so a failure is repeated by its number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.fuzz.anatomy import Anatomy
from tests.fuzz.members import GLOBALS
from tests.fuzz.memory import Image
from virtintrospect.errors import FaultError
from virtintrospect.guests.linux import fib4, fib6, sysctl
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cgrouptree import trees
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.interfaces import device_links
from virtintrospect.guests.linux.namespaces import KINDS
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.guests.linux.pagecache import page_array
from virtintrospect.guests.linux.paths import FilePath, PathReader
from virtintrospect.memory import Mapped, PhysicalMemory, Region
from virtintrospect.symbols.btf import Btf

_U64 = (1 << 64) - 1


#: Where the extra memory of an :class:`Image` begins.
EXTRA = 4 << 30


class Image(PhysicalMemory):
    """A guest's RAM in a file, with changes that only this object sees (copy on write).

    :param mapped: offer the zero-copy window, as shared RAM does.
    :param extra: bytes of empty RAM at :data:`EXTRA`, for lies that need room.
    """

    def __init__(self, path: Path, *, mapped: bool = True, extra: int = 0) -> None:
        with path.open("rb") as file:
            maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)]
        self.regions: tuple[Region, ...] = (Region(0, len(maps[0])),)
        if extra:
            maps.append(mmap.mmap(-1, extra))
            self.regions += (Region(EXTRA, EXTRA + extra),)
        self._maps = maps
        self._windows = [
            Mapped(
                memoryview(data).toreadonly(), *region, bytearray(b"\1" * (region.size >> 12))
            )
            for data, region in zip(maps, self.regions, strict=True)
        ] if mapped else []  # fmt: skip

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        at = paddr - self.regions[index].start
        return self._maps[index][at : at + size]

    def mapped(self, paddr: int) -> Mapped | None:
        index = self.region_index(paddr)
        return self._windows[index] if self._windows and index >= 0 else None

    def write(self, paddr: int, data: bytes) -> None:
        """Change memory; what lies outside of it is dropped."""
        index = self.region_index(paddr)
        if index >= 0 and paddr + len(data) <= self.regions[index].end:
            at = paddr - self.regions[index].start
            self._maps[index][at : at + len(data)] = data


class ImageTarget(Target):
    """A target over any memory."""

    transport = "fuzz"

    def __init__(self, memory: PhysicalMemory, *, live: bool) -> None:
        self._memory = memory
        self.live = live

    @property
    def memory(self) -> PhysicalMemory:
        return self._memory

    def close(self) -> None:
        """Nothing to release."""


#: Members that tables follow or believe, by structure.
MEMBERS = {
    "task_struct": [
        "tasks.next", "tasks.prev", "thread_node.next", "thread_node.prev", "pid", "tgid", "comm",
        "__state|state", "exit_state", "flags", "prio", "static_prio", "start_boottime",
        "real_parent", "real_cred", "signal", "mm", "fs", "cgroups", "worker_private",
        "utime", "stime", "se.sum_exec_runtime", "prev_cputime.utime",
    ],
    "signal_struct": [
        "thread_head.next", "thread_head.prev", "nr_threads", "utime", "sum_sched_runtime",
        "prev_cputime.stime",
    ],
    "mm_struct": [
        "pgd", "exe_file", "arg_start", "arg_end", "env_end", "total_vm", "rss_stat",
        "env_start", "brk", "map_count", "mm_mt.ma_root", "mm_rb.rb_node",
    ],
    "page": [
        "flags", "compound_head|compound_info", "mapping", "page_type", "_refcount.counter",
        "private",
    ],
    "fs_struct": ["pwd.mnt", "pwd.dentry", "root.mnt", "root.dentry"],
    "cred": ["uid", "gid", "euid", "egid"],
    "dentry": ["d_parent", "d_name.name", "d_name.len", "d_hash.pprev"],
    "mount": [
        "mnt.mnt_root", "mnt_parent", "mnt_mountpoint", "mnt.mnt_sb", "mnt.mnt_flags",
        "mnt_devname", "mnt_node.rb_left", "mnt_node.rb_right", "mnt_list.next",
    ],
    "kernfs_node": ["parent|__parent", "name"],
    "kthread": ["data", "full_name"],
    "module": [
        "list.next", "list.prev", "name", "state", "refcnt", "taints",
        "source_list.next", "source_list.prev",
    ],
    "btf_module": ["list.next", "module", "btf"],
    "printk_ringbuffer": [
        "desc_ring.count_bits", "desc_ring.descs", "desc_ring.infos", "desc_ring.head_id",
        "desc_ring.tail_id", "text_data_ring.size_bits", "text_data_ring.data",
    ],
    "prb_desc": ["state_var", "text_blk_lpos.begin", "text_blk_lpos.next"],
    "printk_info": ["seq", "ts_nsec", "text_len", "facility", "level"],
    "timekeeper": [
        "offs_real", "offs_boot", "xtime_sec", "tkr_mono.xtime_nsec", "tkr_mono.shift",
    ],
    "files_struct": ["fdt"],
    "fdtable": ["max_fds", "fd", "close_on_exec"],
    "file": ["f_flags", "f_pos", "f_mode", "f_inode", "f_path.mnt", "f_path.dentry", "f_op",
        "private_data"],
    "inode": ["i_mode", "i_ino", "i_sb"],
    "vm_area_struct": [
        "vm_mm", "vm_start", "vm_end", "vm_flags", "vm_ops", "vm_private_data", "vm_file",
        "vm_rb.rb_left", "vm_rb.rb_right",
    ],
    "maple_node": ["mr64.pivot", "mr64.slot", "ma64.pivot", "ma64.slot"],
    "nsproxy": ["mnt_ns", "uts_ns", "net_ns", "pid_ns_for_children", "time_ns"],
    "mnt_namespace": ["mounts.rb_node", "list.next", "ns.inum", "user_ns"],
    "pid_namespace": ["parent", "user_ns", "ns.inum"],
    "user_namespace": ["parent", "owner", "ns.inum"],
    "uts_namespace": ["name.nodename", "user_ns", "ns.inum"],
    "pid": ["level", "numbers"],
    "cgroup": [
        "self.flags", "self.parent", "self.serial_nr", "self.sibling.next", "self.children.next",
        "kn", "level", "psi", "rstat_cpu|rstat_base_cpu", "bstat", "last_bstat", "prev_cputime",
        "subsys[1]", "subsys[4]", "subsys[11]", "nr_populated_domain_children",
    ],
    "css_set": ["cgrp_links.next", "cgrp_links.prev", "dfl_cgrp"],
    "mem_cgroup": ["memory.usage", "memory.max", "swap.usage", "memory_events"],
    "psi_group": ["pcpu", "avg_last_update", "avg_next_update", "total", "avg", "enabled"],
    "kmem_cache": ["name", "size", "oo", "list.next", "list.prev", "node[0]|per_node[0].node"],
    "kmem_cache_node": ["nr_partial", "partial.next", "nr_slabs", "total_objects"],
    "net": [
        "list.next", "ns.inum", "dev_base_head.next", "unx.table.buckets", "packet.sklist.first",
        "ipv4.tcp_death_row.hashinfo", "ipv4.udp_table",
    ],
    "net_device": [
        "dev_list.next", "name", "mtu", "flags", "state", "operstate", "dev_addr", "addr_len",
        "ip_ptr", "ip6_ptr", "netdev_ops", "tstats", "ifindex", "stats.rx_bytes",
    ],
    "in_device": ["ifa_list"],
    "inet6_dev": ["addr_list.next"],
    "sock": [
        "__sk_common.skc_node.next", "__sk_common.skc_family", "__sk_common.skc_state",
        "__sk_common.skc_net", "__sk_common.skc_num", "sk_type", "sk_protocol", "sk_socket",
    ],
    "unix_sock": ["addr"],
    "socket": ["sk"],
    "inet_hashinfo": ["ehash", "ehash_mask", "lhash2", "lhash2_mask"],
    "udp_table": ["hash", "mask"],
    "netlink_table": ["hash.tbl"],
    "bucket_table": ["size", "nest", "future_tbl", "buckets"],
    "fib_alias": ["fa_list.next", "fa_info", "fa_slen", "tb_id", "fa_type"],
    "fib_info": ["fib_nhs", "fib_metrics", "fib_prefsrc", "nh", "fib_protocol", "fib_priority"],
    "fib6_info": [
        "fib6_next", "fib6_table", "fib6_dst.plen", "fib6_type", "fib6_metrics", "nh",
        "fib6_src.plen", "fib6_nsiblings",
    ],
    "fib6_node": ["left", "right", "subtree", "leaf", "fn_flags"],
    "fib_nh_common": ["nhc_oif", "nhc_gw_family", "nhc_weight", "nhc_flags"],
    "trie": ["kv"],
    "neigh_table": ["nht", "phash_buckets"],
    "neigh_hash_table": ["hash_buckets|hash_heads", "hash_shift"],
    "bpf_prog": ["aux", "len", "jited_len", "type", "tag", "expected_attach_type"],
    "bpf_map": ["map_type", "id", "max_entries", "name", "frozen"],
    "idr": ["idr_rt.xa_head", "idr_base"],
    "timer_list": ["entry.next", "function", "expires", "flags"],
    "hrtimer": ["node.expires", "function", "is_soft"],
    "ctl_dir": ["root.rb_node"],
    "ctl_table": ["procname", "data", "maxlen", "mode", "proc_handler"],
    "ctl_table_header": ["ctl_table", "node"],
}  # fmt: skip

#: Globals whose first words are worth bending.
GLOBALS = [
    "init_task", "modules", "btf_modules", "prb", "saved_command_line", "vmcoreinfo_data",
    "page_offset_base", "__per_cpu_offset", "__cpu_possible_mask", "__cpu_online_mask",
    "init_uts_ns", "linux_banner", "init_top_pgt", "net_namespace_list", "tcp_hashinfo",
    "udp_table", "raw_v4_hashinfo", "nl_table", "cgroup_roots", "cgrp_dfl_root", "slab_caches",
    "nr_node_ids", "psi_period", "ns_unified_root", "mnt_ns_tree",
]  # fmt: skip


class Anatomy:
    """Where the parts of one guest are, learned from the image as it was.

    :param guest: recognised in the unchanged image.
    """

    def __init__(self, guest: LinuxGuest) -> None:
        self.guest = guest
        self.objects: dict[str, list[int]] = {name: [] for name in MEMBERS}
        self._tasks()
        self._paths()
        self._modules()
        self._log()
        self._files_and_mappings()
        self._network()
        self._groups_and_caches()
        self._tables()
        if "shadow_timekeeper" in guest.symbols:
            self.objects["timekeeper"] = [guest.symbols.address("shadow_timekeeper")]
        self.objects = {name: found for name, found in self.objects.items() if found}
        self.everything = sorted({a for found in self.objects.values() for a in found})
        self.members = {
            name: [
                (path, hops[0].offset, min(hops[0].size, 64))
                for choice in MEMBERS[name]
                for path in choice.split("|")
                if guest.types.has(name, path)
                for hops in [guest.types.resolve(name, path)]
            ]
            for name in self.objects
        }

    def _tasks(self) -> None:
        guest = self.guest
        tasks = guest.tasks.addresses()
        self.objects["task_struct"] = [guest.symbols.address("init_task"), *tasks]
        wanted = {
            "signal_struct": "signal", "mm_struct": "mm", "cred": "real_cred", "fs_struct": "fs",
            "kthread": "worker_private|set_child_tid",
        }  # fmt: skip
        columns = guest.layout("task_struct", wanted).lists(guest.kernel, tasks, [])
        for name, column in columns.items():
            self.objects[name] = sorted({a for a in column if a and a >> 47})

    def _paths(self) -> None:
        guest = self.guest
        reader = PathReader(guest, Budget())
        wanted = {"mount": "fs.pwd.mnt", "dentry": "fs.pwd.dentry", "node": "cgroups.dfl_cgrp.kn"}
        exe = {"mount": "mm.exe_file.f_path.mnt", "dentry": "mm.exe_file.f_path.dentry"}
        addresses = self.objects["task_struct"]
        paths = guest.layout("task_struct", wanted).lists(guest.kernel, addresses, [])
        files = guest.layout("task_struct", exe).lists(guest.kernel, addresses, [])
        pairs = [*zip(paths["mount"], paths["dentry"], strict=True)]
        pairs += zip(files["mount"], files["dentry"], strict=True)
        reader.files(FilePath(mount, dentry) for mount, dentry in pairs if mount and dentry)
        reader.cgroups(node for node in paths["node"] if node)
        inner = guest.types.offsetof("mount", "mnt")
        self.objects["dentry"] = sorted(reader._dentries)
        self.objects["mount"] = sorted(address - inner for address in reader._mounts)
        self.objects["kernfs_node"] = sorted(reader._nodes)

    def _modules(self) -> None:
        from virtintrospect.guests.linux.lists import walk_list

        guest = self.guest
        for name, symbol in (("module", "modules"), ("btf_module", "btf_modules")):
            if symbol in guest.symbols:
                offset = guest.types.offsetof(name, "list")
                nodes = walk_list(guest.kernel, guest.symbols.address(symbol)).nodes
                self.objects[name] = [node - offset for node in nodes]

    def _files_and_mappings(self) -> None:
        guest = self.guest
        wanted = {
            "files_struct": "files", "fdtable": "files.fdt", "nsproxy": "nsproxy",
            "mnt_namespace": "nsproxy.mnt_ns", "fd": "files.fdt.fd",
            "maple_node": "mm.mm_mt.ma_root?",
        }  # fmt: skip
        tasks = self.objects["task_struct"]
        columns = guest.layout("task_struct", wanted).lists(guest.kernel, tasks, [])
        nodes = sorted({node & -256 for node in columns.pop("maple_node") if node})
        tables = sorted({table for table in columns.pop("fd") if table})
        for name, column in columns.items():
            self.objects[name] = sorted({address for address in column if address})
        files = memoryview(guest.kernel.gather(tables, 8 * 3)).cast("Q")
        self.objects["file"] = sorted({file for file in files if file})
        layout = guest.layout("file", {"inode": "f_inode"})
        inodes = layout.lists(guest.kernel, self.objects["file"], [])["inode"]
        self.objects["inode"] = sorted({inode for inode in inodes if inode})
        self.objects["maple_node"] = nodes
        slots = memoryview(guest.kernel.gather([node + 128 for node in nodes], 128)).cast("Q")
        areas = {slot for slot in slots if slot >> 47 and not slot & 7}
        self.objects["vm_area_struct"] = sorted(areas)

    def _network(self) -> None:
        guest = self.guest
        symbols = guest.symbols
        rows = guest.sockets()
        self.objects["sock"] = sorted({row.address for row in rows})
        self.objects["unix_sock"] = sorted({row.address for row in rows if row.family == "unix"})
        self.objects["inet_hashinfo"] = [symbols.address("tcp_hashinfo")]
        self.objects["udp_table"] = [symbols.address("udp_table")]
        tables, size = guest.pointer("nl_table"), guest.types.sizeof("netlink_table")
        self.objects["netlink_table"] = [tables + number * size for number in range(32)]
        self.objects["net"] = list(namespaces(guest, Budget()))
        self.objects["net_device"] = [device for device, _, _ in device_links(guest, Budget())]
        for owner, name, member in (
            ("net_device", "in_device", "ip_ptr"), ("net_device", "inet6_dev", "ip6_ptr"),
            ("netlink_table", "bucket_table", "hash.tbl"), ("sock", "socket", "sk_socket"),
            ("task_struct", "files_struct", "files"), ("files_struct", "fdtable", "fdt"),
            ("socket", "file", "file"),
        ):  # fmt: skip
            column = guest.layout(owner, {"it": member}).lists(
                guest.kernel, self.objects[owner], []
            )["it"]
            self.objects[name] = sorted({address for address in column if address})

    def _groups_and_caches(self) -> None:
        guest = self.guest
        groups = self.objects["cgroup"] = trees(guest, Budget())[0].groups
        layout = guest.layout("cgroup", {"memory": "subsys[4]"})
        memory = layout.lists(guest.kernel, groups, [])["memory"]
        self.objects["mem_cgroup"] = sorted({css for css in memory if css})
        own = guest.types.resolve("cgroup", "psi")[-1]
        self.objects["psi_group"] = [guest.symbols.address("psi_system")]
        if own.kind is Kind.POINTER:
            found = guest.layout("cgroup", {"psi": "psi"}).lists(guest.kernel, groups, [])["psi"]
            self.objects["psi_group"] += sorted({address for address in found if address})
        self.objects["kmem_cache"] = [row.address for row in guest.slabs()]
        for owner, name, member in (
            ("task_struct", "css_set", "cgroups"), ("task_struct", "pid", "thread_pid"),
            ("kmem_cache", "kmem_cache_node", "node[0]|per_node[0].node"),
        ):  # fmt: skip
            column = guest.layout(owner, {"it": member}).lists(
                guest.kernel, self.objects[owner], []
            )["it"]
            self.objects[name] = sorted({address for address in column if address})
        for row in guest.namespaces():
            name = KINDS[row.type].structure
            if name in MEMBERS and name not in ("net", "mnt_namespace"):
                self.objects[name].append(row.address)

    def _tables(self) -> None:
        """Routes, neighbours, eBPF, timers and parameters: whatever their walks go over."""
        guest, budget, nets = self.guest, Budget(), self.objects["net"]
        four, six = fib4.routes(guest, nets, budget), fib6.routes(guest, nets, budget)
        self.objects["fib_alias"] = [row["address"] for row in four]
        self.objects["fib_info"] = sorted({row["info"] for row in four})
        self.objects["fib6_info"] = [row["address"] for row in six]
        self.objects["fib_nh_common"] = [hop for row in four + six for hop, _ in row["hops"]]
        layout = guest.layout("fib6_info", {"it": "fib6_node"}, text=())
        nodes = layout.lists(guest.kernel, self.objects["fib6_info"], [])["it"]
        self.objects["fib6_node"] = sorted({node for node in nodes if node})
        self.objects["trie"] = [trie for _, trie in fib4._roots(guest, nets, budget)]
        tables = [guest.symbols.address(name) for name in ("arp_tbl", "nd_tbl")]
        self.objects["neigh_table"] = tables
        layout = guest.layout("neigh_table", {"it": "nht"}, text=())
        self.objects["neigh_hash_table"] = layout.lists(guest.kernel, tables, [])["it"]
        rows = guest.bpf()
        self.objects["bpf_prog"] = [row.address for row in rows if row.kind == "prog"]
        self.objects["bpf_map"] = [row.address for row in rows if row.kind == "map"]
        self.objects["idr"] = [guest.symbols.address(name) for name in ("prog_idr", "map_idr")]
        base, size = page_array(guest)
        frames = range(0, guest.memory.end // 4096, 61)  # of each folio some page
        self.objects["page"] = [base + frame * size for frame in frames]
        timers = guest.timers()
        self.objects["timer_list"] = [row.address for row in timers if row.kind == "wheel"]
        self.objects["hrtimer"] = [row.address for row in timers if row.kind == "hrtimer"]
        level = sysctl._roots(guest, budget)
        entries = sysctl._entries(guest, level, budget)
        self.objects["ctl_dir"] = [directory.address for directory in level]
        self.objects["ctl_table"] = [row["entry"] for row in entries]
        self.objects["ctl_table_header"] = [row["header"] for row in entries]

    def _log(self) -> None:
        guest = self.guest
        ring = guest.pointer("prb")
        layout = guest.layout(
            "printk_ringbuffer", {"descs": "desc_ring.descs", "infos": "desc_ring.infos"}
        )
        tables = layout.read(guest.kernel, ring)
        self.objects["printk_ringbuffer"] = [ring]
        for name, start in (("prb_desc", tables["descs"]), ("printk_info", tables["infos"])):
            size = guest.types.sizeof(name)
            self.objects[name] = [start + number * size for number in range(500)]


class Mutation:
    """One seed's worth of changes to an image.

    :param anatomy: of the image as it was; it is not changed.
    """

    def __init__(self, anatomy: Anatomy, memory: Image, seed: int) -> None:
        self._anatomy = anatomy
        self._guest = anatomy.guest
        self._memory = memory
        self._random = random.Random(seed)
        #: What was done, for the report of a failure.
        self.story: list[str] = []
        #: The kernel's read-only data was changed: nothing cached will fit.
        self.cold = False

    def apply(self) -> None:
        """Change the memory."""
        ways: list[tuple[int, Callable[[], None]]] = [
            (60, self._member), (12, self._mass), (8, self._noise), (8, self._global),
            (8, self._page_table), (15, self._type), (3, self._read_only), (2, self._info_text),
        ]  # fmt: skip
        chosen = [way for _, way in ways]
        weights = [weight for weight, _ in ways]
        for way in self._random.choices(chosen, weights, k=self._random.choice((1, 1, 2, 5, 20))):
            way()

    # -- ways to lie ------------------------------------------------------------------------

    def _member(self) -> None:
        """One member of one object."""
        name = self._random.choice(list(self._anatomy.objects))
        address = self._random.choice(self._anatomy.objects[name])
        path, offset, size = self._random.choice(self._anatomy.members[name])
        self._put(address + offset, self._value(address, size), f"{name}.{path}")

    def _mass(self) -> None:
        """The same member of all objects, each by itself or all alike."""
        name = self._random.choice(list(self._anatomy.objects))
        path, offset, size = self._random.choice(self._anatomy.members[name])
        alike = self._random.random() < 0.5
        value = self._value(self._random.choice(self._anatomy.objects[name]), size)
        for address in self._anatomy.objects[name]:
            self._put(
                address + offset,
                value if alike else self._value(address, size),
                f"every {name}.{path}",
            )

    def _noise(self) -> None:
        """Random bytes somewhere in an object."""
        name = self._random.choice(list(self._anatomy.objects))
        address = self._random.choice(self._anatomy.objects[name])
        size = self._guest.types.sizeof(name)
        for _ in range(self._random.choice((1, 16, 256))):
            where = address + self._random.randrange(size)
            self._put(where, self._random.randbytes(self._random.choice((1, 8))), f"in {name}")

    def _global(self) -> None:
        name = self._random.choice([n for n in GLOBALS if n in self._guest.symbols])
        address = self._guest.symbols.address(name)
        for number in range(self._random.choice((1, 1, 64))):
            self._put(address + 8 * number, self._value(address, 8), name)

    def _page_table(self) -> None:
        """An entry of the kernel's tables, or of a process's."""
        roots = [self._guest.kernel.root]
        mode = self._guest.kernel.mode
        for mm in self._anatomy.objects["mm_struct"]:
            pgd = self._guest.kernel.read_u64(mm + self._guest.types.offsetof("mm_struct", "pgd"))
            roots.append(self._guest.kernel.translate(pgd))
        table = self._random.choice(roots)
        for _ in range(self._random.randrange(1, len(mode.levels))):
            entries = [
                entry
                for entry in memoryview(self._memory.read(table, 4096)).cast("Q")
                if entry & mode.present and not entry & mode.leaf
            ]
            if not entries:
                break
            following = self._random.choice(entries) & mode.frame
            if self._memory.region_index(following) < 0:
                break
            table = following
        for _ in range(self._random.choice((1, 8, 512))):
            entry = self._random.choice((
                0, 0x67, 0xE7, table | 0x67, table | 0xE7, self._guest.kernel.root | 0x63,
                self._random.getrandbits(64), self._random.getrandbits(28) & -4096 | 0x67,
            ))  # fmt: skip
            where = table + 8 * self._random.randrange(512)
            self._memory.write(where, entry.to_bytes(8, "little"))
        self.story.append(f"page table {table:#x}")

    def _type(self) -> None:
        """The record of a type that tables use: its size and kind, or those of a member."""
        types = self._guest.types
        assert isinstance(types, Btf)
        name = self._random.choice([*self._anatomy.objects, "list_head", "cpumask", "btf"])
        type_id = types.find(name)
        start = self._guest.symbols.address("__start_BTF")
        for _ in range(self._random.choice((1, 1, 4))):
            offset, word = self._type_word(types, name, type_id)
            old = int.from_bytes(self._guest.kernel.read(start + offset, 4), "little")
            new = self._random.choice((
                0, 1, old ^ 1 << self._random.randrange(32), self._random.getrandbits(32),
                self._random.randrange(1, types.end_id), types.find("list_head"),
                types.find("char"), types.find("long int"), (old + 8) & 0xFFFF_FFFF,
                old | 0x0800_0000, self._random.randrange(1, 20) << 24,
            ))  # fmt: skip
            self._put(start + offset, new.to_bytes(4, "little"), f"type of {word}")
        self.cold = True

    def _type_word(self, types: Btf, name: str, type_id: int) -> tuple[int, str]:
        """Offset in BTF of a word that describes a type, or one of its members in use."""
        offset, _ = types._head(type_id)
        used = {path.split(".")[0] for path, _, _ in self._anatomy.members.get(name, [])}
        members = [
            (number, member)
            for number, member in enumerate(types.node(type_id).members)
            if member.name in used or not used
        ]
        if not members or self._random.random() < 0.2:
            return offset + 4 * self._random.randrange(3), name
        number, member = self._random.choice(members)
        if self._random.random() < 0.4:
            inner, _ = types._head(types.strip(member.type_id)[0])
            return inner + 4 * self._random.randrange(4), f"{name}.{member.name}'s type"
        return offset + 12 + 12 * number + 4 * self._random.randrange(3), f"{name}.{member.name}"

    def _read_only(self) -> None:
        """Bytes of kallsyms or BTF."""
        first, last = self._random.choice((
            ("__start_BTF", "__stop_BTF"), ("__start_rodata", "__end_rodata"),
            ("__start_notes", "__stop_notes"),
        ))  # fmt: skip
        symbols = self._guest.symbols
        if first in symbols and last in symbols:
            start, end = symbols.address(first), symbols.address(last)
            for _ in range(self._random.choice((1, 8, 1000))):
                self._put(self._random.randrange(start, end), self._random.randbytes(4), first)
            self.cold = True

    def _info_text(self) -> None:
        """Letters of VMCOREINFO."""
        address = self._guest.pointer("vmcoreinfo_data")
        for _ in range(self._random.choice((1, 64))):
            where = address + self._random.randrange(4096)
            self._put(where, self._random.choice((b"\0", b"=", b"\n", b"\xff", b"9")), "VMCOREINFO")

    # -- what to put there ------------------------------------------------------------------

    def _value(self, address: int, size: int) -> bytes:
        if size > 8:
            return self._random.choice((
                b"\x1b]0;owned\x07\r\n\t\xe2\x80\xae"[:size], b"\xff" * size, bytes(size),
                self._random.randbytes(size),
            ))  # fmt: skip
        value = self._random.choice((self._pointer, self._number))(address)
        return (value & _U64).to_bytes(8, "little")[:size]

    def _pointer(self, address: int) -> int:
        offset = self._random.choice((0, 0, 8, 16, self._random.randrange(4096)))
        return self._random.choice((
            address, address + offset, self._random.choice(self._anatomy.everything) + offset,
            self._random.choice(self._anatomy.everything), 0, 8, 0x1000, 1 << 63, _U64, _U64 - 7,
            (1 << 47) - 4, 0xFFFF_8000_0000_0000, self._guest.kernel.linear[0].start + offset,
            self._guest.kernel.linear[0].end - self._random.randrange(16),
        ))  # fmt: skip

    def _number(self, _: int) -> int:
        return self._random.choice((
            0, 1, -1, 2, 63, 64, 200, 0x7FFF_FFFF, 0x8000_0000, 1 << 62, 1 << 63,
            self._random.getrandbits(8), self._random.getrandbits(32), self._random.getrandbits(64),
        ))  # fmt: skip

    def _put(self, vaddr: int, data: bytes, what: str) -> None:
        try:
            self._memory.write(self._guest.kernel.translate(vaddr), data)
        except FaultError:
            return
        if len(self.story) < 40:
            self.story.append(f"{what} at {vaddr:#x} = {data.hex()}")


def seeds(first: int) -> Iterator[int]:
    """Seeds from ``first`` on."""
    while True:
        yield first
        first += 1
