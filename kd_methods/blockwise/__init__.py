"""Methods that run the student through the teacher, block by block."""
