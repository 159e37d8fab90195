"""What the kernel says of this machine, before and during a run."""
