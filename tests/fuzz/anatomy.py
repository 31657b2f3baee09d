"""Where the parts of a real guest are, learned from its image as it was."""

from __future__ import annotations

from tests.fuzz.members import MEMBERS
from virtintrospect.guests.linux import fib4, fib6, memoryfs, sysctl
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cgrouptree import trees
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.interfaces import device_links
from virtintrospect.guests.linux.namespaces import KINDS
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.guests.linux.pagecache import page_array
from virtintrospect.guests.linux.paths import FilePath, PathReader
from virtintrospect.symbols.types import Kind


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
        self._filesystems()
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

    def _filesystems(self) -> None:
        """Those in memory, and the list that they are on."""
        rows = memoryfs._superblocks(self.guest, Budget())
        self.objects["super_block"] = self.guest.entries("super_blocks", "super_block", "s_list")
        self.objects["shmem_sb_info"] = [row["info"] for row in rows if row["kind"] == b"tmpfs"]

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
