"""Ways to loaded modules that do not go by the list of modules.

The kernel finds a module by an address in it through a tree (``mod_tree``, kernel/module/
tree_lookup.c), and shows it below /sys/module through an object in a set (kernel/params.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.modules import LIMIT
from virtintrospect.guests.linux.rbtree import walk_rbtree

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More code and data than a module has, and more pages of thunks.
_LARGEST_MODULE, _MOST_THUNKS = 256 << 20, 1 << 12


def by_list(guest: LinuxGuest, budget: Budget) -> list[int]:
    """Addresses of the modules of /proc/modules.

    :raises NotFoundError: the kernel has no modules.
    """
    nodes, problem = walk_list(
        guest.kernel, guest.symbols.address("modules"), limit=LIMIT, budget=budget
    )
    guest.note_all([problem])
    offset = guest.types.offsetof("module", "list")
    return [node - offset for node in nodes if node >= offset]


def memory_of_modules(guest: LinuxGuest, budget: Budget) -> list[tuple[int, int]]:
    """First and last address, and one more, of all memory of the modules on the list.

    Since 6.4 each kind has its own (commit ac3b43283923). Pages of thunks against indirect
    target selection (6.1, 6.12, 6.15) are theirs, too.
    """
    types = guest.types
    if types.has("module", "mem"):
        count = min(types.enumerators("mod_mem_type").get("MOD_MEM_NUM_TYPES", 0), 16)
        members = {f"base{n}": f"mem[{n}].base" for n in range(count)}
        members |= {f"size{n}": f"mem[{n}].size" for n in range(count)}
    else:
        count = 2
        members = {"base0": "core_layout.base", "size0": "core_layout.size"}
        members |= {"base1": "init_layout.base", "size1": "init_layout.size"}
    members |= {"thunks": "its_page_array?", "pages": "its_num_pages?"}
    layout = guest.layout("module", members, text=())
    columns = layout.lists(guest.kernel, by_list(guest, budget), [])
    found = [
        (base, base + min(size, _LARGEST_MODULE))
        for number in range(count)
        for base, size in zip(columns[f"base{number}"], columns[f"size{number}"], strict=True)
        if base and size and size > 0
    ]
    for array, pages in zip(columns["thunks"], columns["pages"], strict=True):
        if array and pages and 0 < pages <= _MOST_THUNKS and budget.follow(pages) == pages:
            places = [array + guest.kernel.pointer_size * number for number in range(pages)]
            thunks = guest.kernel.gather_pointers(places, [])
            found += [(page, page + guest.page_size) for page in thunks if page]
    return found


def by_address(guest: LinuxGuest, budget: Budget) -> list[int]:
    """Modules that a tree of their memory leads to (CONFIG_MODULES_TREE_LOOKUP).

    The tree exists twice, so that one half can be read while the other is changed.

    :raises NotFoundError: the kernel has no such tree.
    """
    types = guest.types
    tree = guest.symbols.address("mod_tree")
    size = types.sizeof("rb_node")
    inner = types.offsetof("mod_tree_node", "node.node")
    found: list[int] = []
    for half in range(2):
        root = guest.kernel.read_pointer(
            tree + types.offsetof("mod_tree_root", f"root.tree[{half}]")
        )
        nodes, problem = walk_rbtree(guest, root, budget)
        guest.note_all([problem])
        places = [node - half * size - inner for node in nodes]
        layout = guest.layout("mod_tree_node", {"mod": "mod"}, text=())
        found += [
            module
            for module in layout.lists(guest.kernel, [p for p in places if p > 0], [])["mod"]
            if module
        ]
    return list(dict.fromkeys(found))


def by_directory(guest: LinuxGuest, budget: Budget) -> list[int]:
    """Modules that have a directory below /sys/module; what is built in has none of its own.

    :raises NotFoundError: the kernel has no such set.
    """
    types = guest.types
    head = guest.pointer("module_kset") + types.offsetof("kset", "list")
    nodes, problem = walk_list(guest.kernel, head, limit=LIMIT, budget=budget)
    guest.note_all([problem])
    offset = types.offsetof("module_kobject", "kobj.entry")
    layout = guest.layout("module_kobject", {"mod": "mod"}, text=())
    objects = [node - offset for node in nodes if node >= offset]
    return [module for module in layout.lists(guest.kernel, objects, [])["mod"] if module]
