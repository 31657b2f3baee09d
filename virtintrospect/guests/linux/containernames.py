r"""What the path of a control group says about a container, by the habits of the runtimes.

========================  ==================================================================
docker                    ``/docker/ID``, ``/system.slice/docker-ID.scope``
podman                    ``/machine.slice/libpod-ID.scope``, ``/libpod_parent/libpod-ID``
containerd                ``…/cri-containerd-ID.scope``, ``…/nerdctl-ID.scope``,
                          ``/NAMESPACE/ID`` (ctr)
cri-o                     ``…/crio-ID.scope``, ``…/podUID/crio-ID``
kubernetes                ``/kubepods/…/podUID/ID``,
                          ``/kubepods.slice/…-podUID.slice/…-ID.scope``; the runtime in front
                          of ID is the container's
systemd-nspawn            ``/machine.slice/systemd-nspawn@NAME.service``,
                          ``/machine.slice/machine-NAME.scope``
lxc, lxd, incus           ``/lxc.payload.NAME``, ``/lxc.payload/NAME``, ``/lxc/NAME``
libvirt-lxc               ``/machine.slice/machine-lxc\x2dN\x2dNAME.scope``
========================  ==================================================================

Sources: the cgroup drivers of runc (libcontainer/cgroups), Kubernetes' "cgroup v2" and node
pages, podman's libpod, systemd's "Control Group APIs", LXC's ``lxc.cgroup.dir.container``.
What guards a container (conmon, lxc.monitor, nspawn's supervisor) is none itself.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_ID = rb"(?P<id>[0-9a-f]{64})"
#: The forms of a component: ``docker-ID.scope``; ``SLICE:cri-containerd:ID`` where a systemd
#: path met the cgroupfs driver.
_SCOPE = re.compile(
    rb"(?:.*:)?(?P<runtime>docker|libpod|libpod-payload|cri-containerd|crio|nerdctl)[-:]"
    + _ID
    + rb"(?:\.scope)?"
)
_PLAIN = re.compile(_ID)
_RUNTIMES = {
    b"docker": "docker",
    b"libpod": "podman",
    b"libpod-payload": "podman",
    b"cri-containerd": "containerd",
    b"nerdctl": "containerd",
    b"crio": "cri-o",
}
_POD = re.compile(
    rb"(?:.*-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
    rb"(?:\.slice)?(?::.*)?"
)
_NSPAWN = re.compile(rb"systemd-nspawn@(?P<name>.+)\.service")
_MACHINE = re.compile(rb"machine-(?P<name>.+)\.scope")
_LIBVIRT = re.compile(rb"(?P<kind>qemu|lxc)-\d+-(?P<name>.+)")
_LXC = re.compile(rb"lxc\.payload\.(?P<name>.+)")
#: containerd's own namespaces, which ctr and nerdctl put their groups into.
_CONTAINERD = {b"default", b"k8s.io", b"buildkit", b"moby"}
#: Beside what runs in the container: nspawn itself.
_SUPERVISOR = b"supervisor"
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


class Match(NamedTuple):
    """A container that a path names."""

    runtime: str
    #: 64 hexadecimal digits, or a name where the runtime goes by names.
    id: bytes
    name: bytes | None
    pod_uid: str | None
    #: Components of the path that are the container's own group; what follows lies in it.
    depth: int
    #: The path could be anybody's: it is a container only with namespaces of its own.
    weak: bool


def identify(path: bytes) -> Match | None:
    """The innermost container that the path of a control group names."""
    parts = path.strip(b"/").split(b"/")
    for index in range(len(parts) - 1, -1, -1):
        above = parts[index - 1] if index else b""
        found = _component(parts[index], above, depth=index + 1)
        if found:
            if found.runtime == "systemd-nspawn" and parts[index + 1 :][:1] == [_SUPERVISOR]:
                return None
            return found._replace(pod_uid=_pod_uid(parts[: index + 1]))
    return None


def _component(part: bytes, above: bytes, depth: int) -> Match | None:
    if match := _SCOPE.fullmatch(part):
        return Match(_RUNTIMES[match["runtime"]], match["id"], None, None, depth, weak=False)
    if _PLAIN.fullmatch(part) and (above == b"docker" or _POD.fullmatch(above)):
        runtime = "docker" if above == b"docker" else "kubernetes"
        return Match(runtime, part, None, None, depth, weak=False)
    if match := _LXC.fullmatch(part):
        return Match("lxc", match["name"], match["name"], None, depth, weak=False)
    if above == b"lxc.payload" or (above == b"lxc" and depth == 2):
        return Match("lxc", part, part, None, depth, weak=above == b"lxc")
    if above == b"machine.slice":
        return _machine(part, depth)
    if above in _CONTAINERD and depth == 2:
        return Match("containerd", part, None, None, depth, weak=True)
    return None


def _machine(part: bytes, depth: int) -> Match | None:
    """A scope or service of systemd-machined; virtual machines are there, too."""
    match = _NSPAWN.fullmatch(part) or _MACHINE.fullmatch(part)
    if not match:
        return None
    name = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), match["name"])
    libvirt = _LIBVIRT.fullmatch(name)
    if libvirt and libvirt["kind"] == b"qemu":
        return None
    if libvirt:
        return Match("libvirt-lxc", libvirt["name"], libvirt["name"], None, depth, weak=False)
    return Match("systemd-nspawn", name, name, None, depth, weak=False)


def _pod_uid(parts: list[bytes]) -> str | None:
    for part in reversed(parts):
        if match := _POD.fullmatch(part):
            return match["uid"].replace(b"_", b"-").decode()
    return None


#: ``conmon … -n NAME …``, which podman and CRI-O start for each container.
_CONMON_NAME = re.compile(rb" (?:-n|--name)[ =](\S+)")


def guardian(match: Match, parent_name: bytes, parent_cmdline: bytes) -> Match:
    """What the parent of a container's first process adds: the runtime's helper."""
    if match.runtime == "lxc" and parent_cmdline.startswith(b"[lxc monitor]"):
        for runtime in ("incus", "lxd"):
            if f"/{runtime}/".encode() in parent_cmdline:
                return match._replace(runtime=runtime)
    if match.runtime == "kubernetes" and parent_name.startswith(b"containerd-shim"):
        return match._replace(runtime="containerd")
    if parent_name == b"conmon" and (name := _CONMON_NAME.search(parent_cmdline)):
        return match._replace(name=name[1])
    return match
