"""A host with KVM where the hardware offers none, under plain QEMU."""
