"""A store as static pages."""
