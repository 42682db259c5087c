"""CALM Edge runtime."""
