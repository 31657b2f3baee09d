"""virtintrospect's driver for QEMU/KVM guests of libvirt."""
