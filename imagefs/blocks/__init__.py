"""Bytes under digests: blocks, frames, packs, maps, manifests, log objects. Layouts: docs/format.md."""
