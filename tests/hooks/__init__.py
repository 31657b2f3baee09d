"""The hooks: run directly, installed by the command, and called by a libvirtd of their own."""
