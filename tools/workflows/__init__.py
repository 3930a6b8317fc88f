"""Templates, the box and the pictures that the pack shows of itself."""
