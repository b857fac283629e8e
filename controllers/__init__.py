"""Decision logic, one controller per file, found by the entry point group ``twinbed.controllers``."""
