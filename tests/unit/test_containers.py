"""What the paths of control groups say."""

from __future__ import annotations

import pytest

from virtintrospect.guests.linux.containernames import Match, guardian, identify

ID = "0123456789abcdef" * 4
OTHER = "f" * 64
UID = "8c5d1f0e-3c4b-4b6a-9d52-0123456789ab"
SLICE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}"


@pytest.mark.parametrize(
    ("path", "runtime", "identity", "depth", "pod"),
    [
        (f"/docker/{ID}", "docker", ID, 2, None),
        (f"/docker/{OTHER}/docker/{ID}/init.scope", "docker", ID, 4, None),
        (f"/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{ID}.scope",
         "docker", ID, 5, None),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
         "podman", ID, 5, None),
        (f"/machine.slice/p.service/libpod-payload-{ID}", "podman", ID, 3, None),
        (f"{SLICE}.slice/cri-containerd-{ID}.scope", "containerd", ID, 4, UID),
        (f"{SLICE}.slice:cri-containerd:{ID}", "containerd", ID, 3, UID),
        (f"/system.slice/containerd.service{SLICE}.slice:cri-containerd:{ID}",
         "containerd", ID, 5, UID),
        (f"{SLICE}.slice/crio-{ID}.scope/container", "cri-o", ID, 4, UID),
        (f"/kubepods/pod{UID}/{ID}", "kubernetes", ID, 3, UID),
        (f"/kubepods/besteffort/pod{'a' * 32}/{ID}", "kubernetes", ID, 4, "a" * 32),
        (f"/kubepods/besteffort/pod{UID}/crio-{ID}", "cri-o", ID, 4, UID),
        (f"/docker/{OTHER}/kubelet/kubepods/pod{UID}/{ID}", "kubernetes", ID, 6, UID),
        (f"/system.slice/nerdctl-{ID}.scope", "containerd", ID, 2, None),
        ("/default/redis/sub", "containerd", "redis", 2, None),
        ("/machine.slice/systemd-nspawn@web.service/payload/x", "systemd-nspawn", "web", 2, None),
        (r"/machine.slice/machine-a\x2db\x2ec.scope", "systemd-nspawn", "a-b.c", 2, None),
        (r"/machine.slice/machine-lxc\x2d12\x2dbox\x2d1.scope", "libvirt-lxc", "box-1", 2, None),
        ("/lxc.payload.c1/init.scope", "lxc", "c1", 1, None),
        ("/lxc.payload/c1", "lxc", "c1", 2, None),
        ("/lxc/c1/system.slice", "lxc", "c1", 2, None),
    ],
)  # fmt: skip
def test_paths(path: str, runtime: str, identity: str, depth: int, pod: str | None) -> None:
    match = identify(path.encode())
    assert match is not None
    assert (match.runtime, match.id.decode(), match.depth) == (runtime, identity, depth)
    assert match.pod_uid == pod
    assert match.weak == (path.startswith(("/default/", "/lxc/")))


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "//", "/init.scope", "/system.slice/docker.service", f"/{ID}", f"/x/{ID}",
        f"/docker/{ID[:63]}", f"/docker/{ID}0", f"/machine.slice/libpod-conmon-{ID}.scope",
        f"{SLICE}.slice/crio-conmon-{ID}.scope", f"{SLICE}.slice",
        r"/machine.slice/machine-qemu\x2d1\x2dvm.scope", "/lxc.monitor.c1", "/lxc", "/a/lxc/c1",
        "/machine.slice/systemd-nspawn@web.service/supervisor", "/a/default/b",
        f"/docker-{ID.upper()}.scope", f"/docker-{ID}.scope\n",
    ],
)  # fmt: skip
def test_paths_of_no_container(path: str) -> None:
    assert identify(path.encode()) is None


def test_an_endless_path_takes_no_time() -> None:
    assert identify(b"/pod" * 1000 + b"-pod" * 10_000) is None
    assert identify(b"/" + b"a:" * 100_000) is None


def match(runtime: str) -> Match:
    return Match(runtime, b"x", None, None, 1, weak=False)


def test_what_the_parent_adds() -> None:
    monitor = b"[lxc monitor] %s c2"
    assert guardian(match("lxc"), b"lxd", monitor % b"/var/lib/lxc").runtime == "lxc"
    assert guardian(match("lxc"), b"lxd", monitor % b"/var/lib/incus/containers").runtime == "incus"
    assert guardian(match("lxc"), b"lxd", monitor % b"/var/snap/lxd/x").runtime == "lxd"
    assert guardian(match("lxc"), b"lxc-start", b"lxc-start -n /incus/").runtime == "lxc"
    assert guardian(match("kubernetes"), b"containerd-shim", b"").runtime == "containerd"
    assert guardian(match("docker"), b"containerd-shim", b"").runtime == "docker"
    assert guardian(match("podman"), b"conmon", b"conmon -c x -n web -b /").name == b"web"
    assert guardian(match("podman"), b"sh", b"conmon -c x -n web -b /").name is None
