"""Every setting of every command, typed and bounded."""
