"""A machine that runs Xen: QEMU/TCG, the hypervisor, a Debian dom0, and what runs in it.

dom0 boots from the lab's own initramfs and sees this machine's files and Xen's tools as one tree
(an overlay of two folders, both read-only, over 9p), so that our tests run in it as they are.
"""

from __future__ import annotations

from pathlib import Path

from tests.guests.lab.channel import Answer, GuestError
from tests.guests.lab.emulator import Emulator, mount_tree
from tests.guests.lab.initramfs import initramfs
from tests.guests.lab.kernels import kernel

from . import packages

DOM0_KERNEL = "6.1-dom0"
_DOM0_MODULES = (
    "virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay",
    "xen_privcmd", "xen_evtchn", "xenfs", "xen_gntdev", "xen_gntalloc",
)  # fmt: skip
#: With SMAP, dom0 dies at its first iretq; with RDTSCP, PVH guests crash (QEMU 7.2 emulates both
#: wrongly under a hypervisor). SVM and nested paging, for PVH guests, are emulated.
_PROCESSOR = "max,+svm,+npt,-smap,-rdtscp,-xsave,-xsaveopt,-xgetbv1,-avx,-avx2,-f16c,-fma,-mpx,-pku"
_RAM_MIB, _DOM0_MIB = 3072, 1152
_XEN_LINE = (
    f"com1=115200,8n1 console=com1 dom0_mem={_DOM0_MIB}M,max:{_DOM0_MIB}M dom0_max_vcpus=1 "
    "loglvl=warning guest_loglvl=all"
)
_BOOT_PATIENCE = 240.0
#: Where dom0 has the tree.
TREE = "/mnt/tree"

_PREPARE = f"""{mount_tree(TREE, ("host", "xen"))}
mount -t xenfs xenfs {TREE}/proc/xen
mkdir -p {TREE}/run/xen {TREE}/run/xenstored {TREE}/run/lock {TREE}/run/guests
mkdir -p {TREE}/var/log/xen/console {TREE}/var/lib/xen {TREE}/var/lib/xenstored
mkdir -p {TREE}/var/lib/xen/dump
"""
_START = """
set -e
bin=/usr/lib/xen-4.17/bin
$bin/xenstored --pid-file=/run/xenstored.pid
tries=0
until xenstore-read -s / >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "xenstored does not answer" >&2; exit 1; }
    sleep 0.1
done
$bin/xen-init-dom0
$bin/xenconsoled --overflow-data=keep --log=all --log-dir=/var/log/xen/console \
    --pid-file=/run/xenconsoled.pid
"""


class XenMachine(Emulator):
    """The machine, running, with a dom0 whose toolstack is up. A context manager.

    :param hvm: HVM guests can be started.
    """

    def __init__(self, *, hvm: bool = False) -> None:
        self._tree = packages.tree(hvm=hvm)
        super().__init__("dom0", "xen.log")
        try:
            self._start(self._options(), {"host": Path("/"), "xen": self._tree})
            self.wait_ready(_BOOT_PATIENCE)
            self.run(_PREPARE, 60)
            self.shell(_START, 120)
        except BaseException:
            self.close()
            raise

    def execute_in_tree(
        self, command: str, timeout: float = 60, *, environment: dict[str, str] | None = None
    ) -> Answer:
        """Run a shell command in dom0, in the tree; the working directory is this process's."""
        settings = {
            "PATH": "/usr/lib/xen-4.17/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            **(environment or {}),
        }
        return self._execute_in(TREE, settings, command, timeout)

    def shell(self, command: str, timeout: float = 60) -> str:
        """As :meth:`execute_in_tree`: standard output of a command that must succeed.

        :raises GuestError: it failed; what it said, and the end of the hypervisor's log.
        """
        answer = self.execute_in_tree(command, timeout)
        if answer.status:
            said = (answer.stdout + answer.stderr).decode(errors="replace")[-4000:]
            raise GuestError(f"{command!r}: status {answer.status}: {said}\n{self._tail()}")
        return answer.stdout.decode(errors="replace")

    def log(self) -> str:
        """The end of what Xen and dom0 have said."""
        return self._tail()

    def _options(self) -> dict[str, str]:
        image = kernel(DOM0_KERNEL)
        root = initramfs(image, [(module, "") for module in _DOM0_MODULES])
        dom0 = f"{packages.vmlinux(image)} console=hvc0 loglevel=4 panic=-1 lab.workload=0"
        return {
            "-cpu": _PROCESSOR,
            "-m": str(_RAM_MIB),
            "-kernel": str(self._tree / "xen"),
            "-append": _XEN_LINE,
            "-initrd": f"{dom0},{root}",
            "-serial": f"file:{self.console}",
        }
