"""Image-text pairs: where they come from, how they are decoded, and how they become batches.

Everything below this package is NumPy; nothing here knows about JAX, models or losses.
"""
