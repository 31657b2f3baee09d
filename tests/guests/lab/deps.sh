#!/bin/sh
# What `make` needs from the system. Installs what is missing on Debian when root; says what to
# install otherwise. Instant and offline when nothing is missing.
#
# Usage: deps.sh PYTHON [COMMAND …]   (commands that only some tests need, from the packages of their name)
set -eu

python=$1
shift
missing=
need() { # PACKAGE, unless the command that follows succeeds
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has() { command -v "$1"; }
installed() { [ "$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null)" = "install ok installed" ]; }

# The interpreter's own headers and pip: pyenv's bring them along, Debian's do not.
headers() { "$python" -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_path("include"), "Python.h").stat()'; }
pip() { "$python" -c 'import ensurepip, venv'; }
if [ -n "$python" ]; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    need "$version-dev" headers
    need "$version-venv" pip
else
    missing="$missing python3 python3-dev python3-venv"
fi
need gcc has gcc
need libc6-dev test -e /usr/include/stdlib.h
need gcc-i686-linux-gnu has i686-linux-gnu-gcc
need libc6-dev-i386-cross test -e /usr/i686-linux-gnu/include/stdlib.h
need pkg-config has pkg-config
need libvirt-dev pkg-config --exists libvirt
need libvirt-daemon-system installed libvirt-daemon-system
need libvirt-clients has virsh
need qemu-system-x86 has qemu-system-x86_64
need qemu-system-arm has qemu-system-aarch64
need qemu-system-misc has qemu-system-riscv64
need gcc-riscv64-linux-gnu has riscv64-linux-gnu-gcc
need libc6-dev-riscv64-cross test -e /usr/riscv64-linux-gnu/include/stdlib.h
need gcc-arm-linux-gnueabihf has arm-linux-gnueabihf-gcc
need libc6-dev-armhf-cross test -e /usr/arm-linux-gnueabihf/include/stdlib.h
need gcc-aarch64-linux-gnu has aarch64-linux-gnu-gcc
need libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdlib.h
need seabios test -e /usr/share/seabios/bios-256k.bin
need busybox-static installed busybox-static
need dpkg has dpkg-deb
need debootstrap test -e /usr/sbin/debootstrap
need e2fsprogs test -e /usr/sbin/mke2fs
need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
need bpftool test -x /usr/sbin/bpftool
need crash has crash
need pahole has pahole
need binutils has readelf
need libfuse3-3 installed libfuse3-3
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
need iproute2 test -x /usr/sbin/ip
need openssh-client has ssh
for command in "$@"; do
    need "$command" has "$command"
done

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "Some packages are missing. As root, run" >&2
    echo "    apt-get update && apt-get install --no-install-recommends$missing" >&2
    echo "and then the same make command again." >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "Only Debian's packages are known here; install the likes of:$missing" >&2
    exit 1
fi
echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
# shellcheck disable=SC2086  # a list of packages
apt-get -q install -y --no-install-recommends $missing
