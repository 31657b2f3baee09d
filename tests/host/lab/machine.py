"""A machine that is a host: QEMU/TCG with AMD's SVM and nested paging, KVM, and two NUMA nodes.

It boots from the lab's own initramfs and sees this machine's files as a tree of its own, so that
libvirt and our tests run in it as they are. Its second node has no processor, as memory that is
plugged in has none: with one processor nothing waits for another that is not emulated just now.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from tests.guests.lab.channel import Answer, GuestError
from tests.guests.lab.emulator import Emulator, mount_tree
from tests.guests.lab.initramfs import initramfs
from tests.guests.lab.kernels import kernel

_KERNEL = "6.12-full"
_MODULES = (
    "crc32c_generic", "virtio_pci", "virtio_console", "loop", "9pnet_virtio", "9p", "overlay",
    "tun", "kvm_amd",
)  # fmt: skip
#: Of each node. The first has what tests write, and programs; the second is empty.
_NODES_MIB = (2048, 1024)
_LINE = (
    "console=ttyS0 quiet panic=-1 lab.workload=0 no_timer_check psi=1 "
    # What is in huge pages is for tests to say.
    "transparent_hugepage=never numa_balancing=disable mitigations=off"
)
_PATIENCE = 600.0
#: Environment variable that is there for what runs in the machine.
INSIDE = "VIRTINTROSPECT_HOST_INSIDE"
#: Its console, in the tree, too.
CONSOLE = "/dev/ttyS0"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Where it has the tree.
TREE = "/mnt/tree"

_PREPARE = f"""{mount_tree(TREE, ("host",))}
mount -t cgroup2 cgroup2 {TREE}/sys/fs/cgroup
mkdir -p {TREE}/dev/hugepages
mount -t hugetlbfs hugetlbfs {TREE}/dev/hugepages
chmod 666 {TREE}/dev/kvm
ip link set lo up
"""
#: In a namespace of its own, in which the tree is the root as after switch_root(8): libvirt makes
#: a guest's devices where setns(2) leads, which is out of a chroot.
_DAEMONS = f"""
unshare -m sh -c 'cd {TREE}; mount --move . /; exec chroot . /bin/sh -c "virtlogd -d; libvirtd -d"'
"""
#: It answers when it has tried what its QEMU can do.
_ANSWERS = "until virsh -c qemu:///system uri >/dev/null 2>&1; do sleep 1; done"


class HostMachine(Emulator):
    """The machine, running. A context manager."""

    def __init__(self) -> None:
        super().__init__("the host", "console.log")
        try:
            self._start(self._options(), {"host": Path("/")})
            self.wait_ready(_PATIENCE)
            self.run(_PREPARE, _PATIENCE)
            self._start_libvirt()
        except BaseException:
            self.close()
            raise

    def execute_in_tree(
        self, command: str, timeout: float = 60, *, environment: dict[str, str] | None = None
    ) -> Answer:
        """Run a shell command in the tree; the working directory is this process's."""
        settings = {
            "PATH": _PATH,
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            **(environment or {}),
        }
        return self._execute_in(TREE, settings, command, timeout)

    def _start_libvirt(self) -> None:
        path = shlex.quote(f"PATH={_PATH}")
        self.run(f"export {path}; {_DAEMONS}", _PATIENCE)
        answers = self.execute_in_tree(_ANSWERS, _PATIENCE)
        if answers.status:
            raise GuestError(f"libvirt does not answer: {answers}")

    def said(self) -> str:
        """What came over its console."""
        return self.console.read_text(errors="backslashreplace").replace("\r\n", "\n")

    def _options(self) -> dict[str, str | Sequence[str]]:
        image = kernel(_KERNEL)
        nodes = range(len(_NODES_MIB))
        return {
            "-cpu": "max,+svm,+npt",
            "-m": str(sum(_NODES_MIB)),
            "-object": [f"memory-backend-ram,id=node{n},size={_NODES_MIB[n]}M" for n in nodes],
            "-numa": [
                f"node,nodeid={n},memdev=node{n}" + (",cpus=0" if n == 0 else "") for n in nodes
            ],
            "-kernel": str(image.vmlinuz),
            "-initrd": str(initramfs(image, [(module, "") for module in _MODULES])),
            "-append": _LINE,
            "-serial": f"file:{self.console}",
        }
