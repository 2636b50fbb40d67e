"""Tables as lines of cells, notes and captions, before any format."""
