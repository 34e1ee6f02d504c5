"""Evaluation: zero-shot ranking of class names, retrieval, and the sets they are measured on."""
