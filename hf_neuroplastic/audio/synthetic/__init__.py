"""A corpus made by the computer: voices, attacks on them, and files in ASVspoof 2019 layout."""
