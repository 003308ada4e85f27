"""What `core.distributed` shares between processes, under the name that the engine's modules use."""

from yolo_adapruner.core.distributed import add_up, of_first, repeated, together

__all__ = ["add_up", "of_first", "repeated", "together"]
