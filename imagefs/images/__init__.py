"""What one can do with images: create, write, seal, read, clone, delete, collect, check."""
