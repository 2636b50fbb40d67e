"""A cell as mmengine's Runner trains it, in a process of its own."""
