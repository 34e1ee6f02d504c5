"""Studies: experiments that are written down before they are run, and can be run again."""
