"""Detectors of mmdetection as networks, the configurations that they are built from, and operators of mmcv's."""
