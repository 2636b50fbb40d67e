"""Object detection with mmdetection: networks, tasks, training, engine."""
