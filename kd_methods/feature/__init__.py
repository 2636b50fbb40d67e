"""Methods that match feature maps."""
