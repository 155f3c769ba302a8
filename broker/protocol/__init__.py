"""The protocol layer: frames, tensors, sessions. Pure: bytes and times in, frames and bytes out (docs/wire.md)."""
