"""Methods for detectors: on the levels of their feature pyramids, and through the teacher's heads."""
