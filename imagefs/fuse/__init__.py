"""The filesystem adapters: decode what the kernel asks, call the tree, encode the answer. No policy."""
