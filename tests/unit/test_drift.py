"""Layouts of kernels that no guest here runs: each form of what changed, built by hand.

One test for each change that a table depends on. Symbol tables, BTF and the log have files of
their own (symbols/, test_printk.py).
"""

from __future__ import annotations

import struct

import pytest

from tests.unit.built import BASE, BuiltKernel
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.arch.paging import walk
from virtintrospect.guests.linux.guest import LinuxGuest

LIST = {
    "list_head": "list_head *next; list_head *prev",
    "rb_node": "u64 __rb_parent_color; rb_node *rb_right; rb_node *rb_left",
    "rb_root": "rb_node *rb_node",
    "atomic": "int counter",
    "atomic_long": "long counter",
}

# -- modules --------------------------------------------------------------------------------

_MODULE = "u32 state; list_head list; char name[56]; atomic refcnt; u64 taints"
MODULES: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "6.4": (
        {"module_memory": "u64 *base; u32 size", "module": _MODULE + "; module_memory mem[7]"},
        {"mem[0].base": 0xFFFF_0000, "mem[0].size": 4096, "mem[6].size": 2048},
    ),
    "4.5": (
        {
            "module_layout": "u64 *base; u32 size",
            "module": _MODULE + "; module_layout core_layout; module_layout init_layout",
        },
        {"core_layout.base": 0xFFFF_0000, "core_layout.size": 4096, "init_layout.size": 2048},
    ),
    "before": (
        {"module": _MODULE + "; u64 *module_core; u32 init_size; u32 core_size"},
        {"module_core": 0xFFFF_0000, "core_size": 4096, "init_size": 2048},
    ),
}


@pytest.mark.parametrize("form", MODULES)
def test_modules(form: str) -> None:
    structs, memory = MODULES[form]
    kernel = BuiltKernel(
        LIST | structs,
        {"mod_mem_type": {"MOD_TEXT": 0, "MOD_INIT_RODATA": 6, "MOD_MEM_NUM_TYPES": 7}},
    )
    head = kernel.make("list_head", symbol="modules")
    module = kernel.make(
        "module", {"name": b"e1000\0", "refcnt.counter": 3, "taints": 1 << 12} | memory
    )
    kernel.link(head, [kernel.at("module", module, "list")])
    (found,) = kernel.guest().modules()
    assert (found.name, found.size, found.address) == (b"e1000", 6144, 0xFFFF_0000)
    assert (found.refcount, found.status, found.taints, found.used_by) == (2, "Live", "O", ())


# -- processes ------------------------------------------------------------------------------

_PATH = LIST | {
    "vfsmount": "dentry *mnt_root; super_block *mnt_sb; int mnt_flags",
    "path": "vfsmount *mnt; dentry *dentry",
    "qstr": "u32 hash; u32 len; char *name",
    "hlist_bl_node": "u64 *next; u64 *pprev",
    "dentry_operations": "u64 *d_dname",
    "inode": "u64 i_ino; super_block *i_sb",
    "file_system_type": "char *name",
    "super_block": "u32 s_dev; u64 s_flags; file_system_type *s_type; char *s_subtype",
    "kernfs_node": "kernfs_node *parent; char *name",
}  # fmt: skip
_DENTRY = (
    "hlist_bl_node d_hash; dentry *d_parent; qstr d_name; inode *d_inode; dentry_operations *d_op"
)
_MOUNT = "mount *mnt_parent; dentry *mnt_mountpoint; vfsmount mnt; char *mnt_devname"
_TASK = (
    "list_head tasks; int pid; int tgid; char comm[16]; int exit_state; u32 flags; int prio;"
    " int static_prio; task_struct *real_parent; cred *real_cred; u64 utime; u64 stime;"
    " sched_entity se; prev_cputime prev_cputime; signal_struct *signal; mm_struct *mm;"
    " fs_struct *fs; list_head thread_node"
)
_MM = (
    "; u64 *pgd; u64 total_vm; u64 arg_start; u64 arg_end; u64 env_end; file *exe_file;"
    " int map_count; u64 brk; u64 start_brk; u64 start_stack"
)


def _process_types(form: str) -> dict[str, str]:
    """``old`` is 5.4's, ``new`` 6.12's."""
    old = form == "old"
    first = {
        "kuid": "u32 val", "cred": "kuid uid; kuid gid; kuid euid; kuid egid",
        "sched_entity": "u64 sum_exec_runtime", "prev_cputime": "u64 utime; u64 stime",
        "cpumask": "u64 bits[1]",
        "fs_struct": "path root; path pwd", "file": "path f_path",
        "signal_struct": "int nr_threads; list_head thread_head; u64 utime; u64 stime;"
        " u64 sum_sched_runtime; prev_cputime prev_cputime",
        "kthread": "u64 flags; u64 *data" + ("" if old else "; char *full_name"),
        "worker": "char desc[24]; u64 *current_work; u64 *pool",
    }  # fmt: skip
    if old:
        first |= {
            "mm_rss_stat": "atomic_long count[4]",
            "mm_struct": "rb_root mm_rb; mm_rss_stat rss_stat" + _MM,
            "task_struct": "long state; u64 real_start_time; u64 *set_child_tid;"
            " list_head thread_group; " + _TASK,
        }
    else:
        first |= {
            "maple_tree": "u64 *ma_root",
            "percpu_counter": "u64 lock; long count; int *counters",
            "mm_struct": "maple_tree mm_mt; percpu_counter rss_stat[4]" + _MM,
            "task_struct": "u32 __state; u64 start_boottime; u64 *worker_private; " + _TASK,
        }
    mount = {"dentry": _DENTRY, "mount": _MOUNT}
    return _PATH | mount | first


@pytest.fixture(params=["old", "new"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _tasks(form: str, kernel: BuiltKernel) -> list[int]:
    """init with two threads, a kernel thread with a long name; init's address first."""
    old = form == "old"
    started, state, private = (
        ("real_start_time", "state", "set_child_tid")
        if old
        else ("start_boottime", "__state", "worker_private")
    )
    cred = kernel.make("cred", {"uid.val": 1000, "euid.val": 0})
    if old:
        rss = {f"rss_stat.count[{kind}].counter": 10 + kind for kind in range(4)}
    else:
        offset = 0x100
        kernel.number("__cpu_possible_mask", 3)
        table = kernel.room(16)
        kernel.write(table, struct.pack("<2Q", 0, offset))
        kernel.symbols["__per_cpu_offset"] = table
        counters = [kernel.room(0x200) for _ in range(4)]
        for counter in counters:
            kernel.write(counter, struct.pack("<i", 3))
            kernel.write(counter + offset, struct.pack("<i", -3))
        rss = {f"rss_stat[{kind}].count": 10 + kind for kind in range(4)} | {
            f"rss_stat[{kind}].counters": at for kind, at in enumerate(counters)
        }
    mm = kernel.make("mm_struct", {"total_vm": 99, "pgd": BASE + 0x2000} | rss)
    signal = kernel.make("signal_struct", {"nr_threads": 2})
    lonely = kernel.make("signal_struct", {"nr_threads": 1})
    long_name = kernel.string(b"kworker/R-a_very_long_name")
    kthread = kernel.make("kthread", {} if old else {"full_name": long_name})
    swapper = kernel.make("task_struct", {"comm": b"swapper/0"}, symbol="init_task")
    common = {"prio": 120, "static_prio": 120, "real_cred": cred, "real_parent": swapper}
    init = kernel.make("task_struct", {
        "pid": 1, "tgid": 1, "comm": b"init", state: 1, started: 5 * 10**9, "mm": mm,
        "signal": signal,
    } | common)  # fmt: skip
    thread = kernel.make("task_struct", {
        "pid": 7, "tgid": 1, "comm": b"helper", state: 2, started: 6 * 10**9, "mm": mm,
        "signal": signal,
    } | common)  # fmt: skip
    worker = kernel.make("task_struct", {
        "pid": 2, "tgid": 2, "comm": b"kworker/R-a_ver", state: 0x402, started: 1, private: kthread,
        "flags": 0x20_0000, "signal": lonely,
    } | common)  # fmt: skip
    kernel.link(
        kernel.at("task_struct", swapper, "tasks"),
        [kernel.at("task_struct", task, "tasks") for task in (init, worker)],
    )
    kernel.link(
        kernel.at("signal_struct", signal, "thread_head"),
        [kernel.at("task_struct", task, "thread_node") for task in (init, thread)],
    )
    return [init, thread, worker]


@pytest.mark.parametrize("page_shift", [12, 14, 16])
def test_processes(form: str, page_shift: int) -> None:
    """``state`` and ``__state``, forms of rss_stat, of start times, of kernel threads' names."""
    kernel = BuiltKernel(_process_types(form))
    _tasks(form, kernel)
    init, worker = kernel.guest(page_shift=page_shift).processes()
    assert (init.pid, init.name, init.state, init.threads, init.uid) == (1, b"init", "S", 2, 1000)
    assert init.resident_size == (10 + 11 + 13) << page_shift
    assert init.total_size == 99 << page_shift
    assert (worker.pid, worker.state, worker.kernel_thread) == (2, "I", True)
    name = b"kworker/R-a_ver" if form == "old" else b"kworker/R-a_very_long_name"
    assert worker.name == name
    assert worker.resident_size is None


def test_threads(form: str) -> None:
    """``thread_group`` or not: ``thread_head`` is there since 3.14."""
    kernel = BuiltKernel(_process_types(form))
    _tasks(form, kernel)
    found = [(row.pid, row.tid, row.state) for row in kernel.guest().processes(threads=True)]
    assert found == [(1, 1, "S"), (1, 7, "D"), (2, 2, "I")]


# -- mappings -------------------------------------------------------------------------------

_AREA = (
    "u64 vm_start; u64 vm_end; mm_struct *vm_mm; u64 vm_flags; rb_node vm_rb; u64 vm_pgoff;"
    " u64 *vm_ops; u64 *vm_private_data; file *vm_file"
)
_MAPLE = {
    "maple_range_64": "u64 *parent; u64 pivot[15]; u64 *slot[16]",
    "maple_arange_64": "u64 *parent; u64 pivot[9]; u64 *slot[10]; u64 gap[10]",
    "maple_dense": "u64 *parent; u64 *slot[31]",
    "union maple_node": "maple_range_64 mr64; maple_arange_64 ma64; maple_dense dense;"
    " u64 *slot[31]",
}
_MAPLE_TYPE = {"maple_dense": 0, "maple_leaf_64": 1, "maple_range_64": 2, "maple_arange_64": 3}


def _maps_types(form: str) -> dict[str, str]:
    types = _process_types(form)
    types["file"] = "path f_path; u32 f_mode; inode *f_inode"
    types["vm_special_mapping"] = "char *name"
    types["vm_area_struct"] = _AREA
    if form == "new":
        types |= _MAPLE
    return types


def test_maps(form: str) -> None:
    """Areas in a red-black tree (to 6.0), and in a maple tree."""
    kernel = BuiltKernel(_maps_types(form), {"maple_type": _MAPLE_TYPE})
    init, _, _ = _tasks(form, kernel)
    guest = kernel.guest()
    mm = guest.layout("task_struct", ["mm"]).read(guest.kernel, init)["mm"]
    areas = [
        kernel.make("vm_area_struct", {
            "vm_start": start, "vm_end": start + 0x1000, "vm_mm": mm, "vm_flags": flags,
        })
        for start, flags in ((0x1000, 5), (0x3000, 3), (0x8000, 0x83))
    ]  # fmt: skip
    if form == "old":
        nodes = [kernel.at("vm_area_struct", area, "vm_rb") for area in areas]
        kernel.set("rb_node", nodes[1], {"rb_left": nodes[0], "rb_right": nodes[2]})
        kernel.set("mm_struct", mm, {"mm_rb.rb_node": nodes[1]})
    else:
        node = (kernel.room(512) + 255) & -256
        slots = [0, areas[0], 0, areas[1], 0, areas[2], 0]
        pivots = [0xFFF, 0x1FFF, 0x2FFF, 0x3FFF, 0x7FFF, 0x8FFF, (1 << 64) - 1]
        words = [0, *pivots, *[0] * (15 - len(pivots)), *slots, *[0] * (16 - len(slots))]
        kernel.write(node, struct.pack("<32Q", *words))
        kernel.set("mm_struct", mm, {"mm_mt.ma_root": node | 1 << 3 | 6})
    kernel.set("mm_struct", mm, {"map_count": 3})
    found = guest.maps(1)
    assert [(area.start, area.permissions) for area in found] == [
        (0x1000, "r-xp"), (0x3000, "rw-p"), (0x8000, "rw-s"),
    ]  # fmt: skip
    assert guest.take_problems() == []


# -- mounts ---------------------------------------------------------------------------------

MOUNTS = {
    "list": ("list_head mnt_list", "list_head list"),
    "6.8": ("rb_node mnt_node", "rb_root mounts"),
    "6.13": ("rb_node mnt_node", "rb_root mounts; rb_node *mnt_last_node; rb_node *mnt_first_node"),
}
#: What hangs below a directory: nothing that is read here, but it moves what follows.
CHILDREN = ("list_head d_child; list_head d_subdirs", "u64 *d_sib[2]; u64 *d_children")


@pytest.mark.parametrize("children", CHILDREN, ids=["list", "hlist"])
@pytest.mark.parametrize("kind", MOUNTS)
def test_mounts(kind: str, children: str) -> None:
    link, space = MOUNTS[kind]
    types = _process_types("new")
    types["dentry"] = f"{children}; {_DENTRY}"
    types["mount"] = f"{_MOUNT}; {link}"
    types |= {"ns_common": "u32 inum", "mnt_namespace": f"ns_common ns; {space}"}
    types["nsproxy"] = "mnt_namespace *mnt_ns"
    types["task_struct"] += "; nsproxy *nsproxy"
    kernel = BuiltKernel(types)
    init, _, _ = _tasks("new", kernel)
    namespace = kernel.make("mnt_namespace", {"ns.inum": 77})
    root, point = _dentry(kernel, b"/"), 0
    point = _dentry(kernel, b"srv", root)
    top = _dentry(kernel, b"/")
    first = _mount(kernel, 0, root, root, b"/dev/vda")
    second = _mount(kernel, first, point, top, b"tmpfs")
    inner = kernel.types.offsetof("mount", "mnt")
    fs = kernel.make("fs_struct", {"root.mnt": first + inner, "root.dentry": root})
    proxy = kernel.make("nsproxy", {"mnt_ns": namespace})
    kernel.set("task_struct", init, {"fs": fs, "nsproxy": proxy})
    mounts = [first, second]
    if kind == "list":
        cursor = kernel.make("mount", {"mnt.mnt_flags": 0x1000_0000})
        kernel.link(
            kernel.at("mnt_namespace", namespace, "list"),
            [kernel.at("mount", mount, "mnt_list") for mount in (first, cursor, second)],
        )
    else:
        nodes = [kernel.at("mount", mount, "mnt_node") for mount in mounts]
        kernel.set("rb_node", nodes[0], {"rb_right": nodes[1]})
        kernel.set("mnt_namespace", namespace, {"mounts.rb_node": nodes[0]})
    guest = kernel.guest()
    found = [(m.device, m.path, m.type, m.flags, m.namespace) for m in guest.mounts()]
    assert found == [
        (b"/dev/vda", b"/", b"ext4", "rw,nosuid", 77),
        (b"tmpfs", b"/srv", b"ext4", "rw,nosuid", 77),
    ]
    assert guest.take_problems() == []


def _dentry(kernel: BuiltKernel, name: bytes, parent: int = 0) -> int:
    dentry = kernel.make("dentry", {
        "d_name.len": len(name), "d_name.name": kernel.string(name), "d_hash.pprev": 1,
    })  # fmt: skip
    kernel.set("dentry", dentry, {"d_parent": parent or dentry})
    return dentry


def _mount(kernel: BuiltKernel, parent: int, point: int, root: int, device: bytes) -> int:
    kind = kernel.make("file_system_type", {"name": kernel.string(b"ext4")})
    system = kernel.make("super_block", {"s_type": kind})
    mount = kernel.make("mount", {
        "mnt_mountpoint": point, "mnt.mnt_root": root, "mnt.mnt_sb": system, "mnt.mnt_flags": 1,
        "mnt_devname": kernel.string(device),
    })  # fmt: skip
    kernel.set("mount", mount, {"mnt_parent": parent or mount})
    return mount


# -- cgroups, page tables -------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["parent", "__parent"])
def test_cgroup_paths(parent: str) -> None:
    """``kernfs_node.parent`` is ``__parent`` since 6.15."""
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.paths import PathReader

    types = _process_types("new")
    types["kernfs_node"] = f"kernfs_node *{parent}; char *name"
    kernel = BuiltKernel(types)
    root = kernel.make("kernfs_node", {"name": kernel.string(b"")})
    middle = kernel.make("kernfs_node", {"name": kernel.string(b"system.slice"), parent: root})
    leaf = kernel.make("kernfs_node", {"name": kernel.string(b"ssh"), parent: middle})
    found = PathReader(kernel.guest(), Budget()).cgroups([leaf, root])
    assert found == {leaf: b"/system.slice/ssh", root: b"/"}


@pytest.mark.parametrize("entry", [0x0000_FFFF_FFFF_E000, 0x1000, 1 << 51 | 0x2000])
def test_entries_of_pages_that_are_not_present_lead_nowhere(entry: int) -> None:
    """Their frame may be inverted against L1TF (4.19): it is never followed."""
    kernel = BuiltKernel(LIST)
    guest: LinuxGuest = kernel.guest()
    unmapped = BASE + (8 << 21)
    kernel.memory.write_u64(0x4000 + 8 * ((unmapped >> 21) & 511), entry & ~1)
    found = walk(guest.memory, X86_64_4LEVEL, 0x2000, unmapped)
    assert not found.present
    assert found.paddr is None
