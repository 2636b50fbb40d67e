"""Methods that match logits."""
