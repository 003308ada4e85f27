"""What a finished run found, as one HTML page. Reads run folders and comparison folders; knows no model."""

from yolo_adapruner.report.page import NAME, write

__all__ = ["NAME", "write"]
