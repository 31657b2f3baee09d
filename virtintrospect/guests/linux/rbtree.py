"""Red-black trees of the kernel (include/linux/rbtree_types.h), read a level at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.lists import ListWalk
from virtintrospect.model import Problem

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: A red-black tree of n nodes is at most 2 log2(n + 1) high: enough for 2^32 of them.
MAX_HEIGHT = 64


def walk_rbtree(guest: LinuxGuest, root: int, budget: Budget) -> ListWalk:
    r"""Addresses of the ``rb_node``\ s below one, in the tree's order.

    :param root: value of ``rb_root.rb_node``; 0 is an empty tree.
    :returns: the nodes; of a broken tree those that can be reached, each once.
    """
    children: dict[int, tuple[int, int]] = {}
    problem = None
    level = [root] if root else []
    for _ in range(MAX_HEIGHT):
        level = level[: budget.follow(len(level))]
        if not level or budget.late():
            break
        faults: list[int] = []
        found = _children(guest, level, faults)
        for index in faults:
            problem = problem or Problem("unreadable tree node", level[index])
        bad = set(faults)
        children.update(
            (node, pair)
            for index, (node, pair) in enumerate(zip(level, found, strict=True))
            if index not in bad
        )
        wanted = [node for pair in found for node in pair if node]
        level = [node for node in dict.fromkeys(wanted) if node not in children]
        if len(level) < len(wanted):
            problem = problem or Problem("tree with a cycle", root)
    else:
        problem = problem or Problem(f"tree higher than {MAX_HEIGHT} levels", root)
    return ListWalk(_in_order(root, children), problem)


def _children(guest: LinuxGuest, nodes: list[int], faults: list[int]) -> list[tuple[int, int]]:
    left = guest.types.offsetof("rb_node", "rb_left")
    right = guest.types.offsetof("rb_node", "rb_right")
    pairs = [
        guest.kernel.gather_pointers([node + offset for node in nodes], faults)
        for offset in (left, right)
    ]
    return list(zip(*pairs, strict=True))


def _in_order(root: int, children: dict[int, tuple[int, int]]) -> list[int]:
    ordered: list[int] = []
    entered: set[int] = set()
    stack: list[int] = []
    node = root
    while stack or node:
        while node in children and node not in entered:
            entered.add(node)
            stack.append(node)
            node = children[node][0]
        if not stack:
            break
        node = stack.pop()
        ordered.append(node)
        node = children[node][1]
    return ordered
