"""The programs behind the command line; each prints its help with --help."""
