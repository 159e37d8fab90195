"""`./run_test`, from its arguments to its exit code."""
