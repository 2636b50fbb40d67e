"""What is computed once from a trained teacher: vocabularies, sub-classes, the quality of its layers."""
