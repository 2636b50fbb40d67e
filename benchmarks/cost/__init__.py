"""What a method costs: speed, memory, parameters."""
