"""A real Xen with a Debian dom0, under plain QEMU."""
