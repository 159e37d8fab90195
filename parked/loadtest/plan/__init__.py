"""What fits on a machine, what a size needs, and whether the limits allow it."""
