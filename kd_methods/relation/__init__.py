"""Methods that match relations between samples."""
