"""What detection brings to the registries of the suite."""

from . import coco, shapes

TASKS = (shapes.TASK, coco.TASK)
