"""The network and its inference: exactly what is copied beside saved weights, so it imports nothing of the package."""
