"""A model at work: encoding, features that are kept, image collections, pair trust."""
