"""Corpora of bona fide and spoofed speech, a file for each layout."""
