"""What a command shows of a guest, as flat records."""
