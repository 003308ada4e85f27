"""The mask core: numpy and torch only, no files, no images, no Ultralytics; serves any task and any domain."""
