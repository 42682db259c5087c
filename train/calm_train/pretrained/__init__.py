"""Pretrained parts by name: what there is, fetched from the Python package index and turned into model folders."""
