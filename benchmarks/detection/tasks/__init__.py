"""Data sets in COCO's layout, with their metric. Imports nothing of mmdetection."""
