"""What the package is called by others: the one place for its version and for its public home."""

__version__ = "0.1.0"
#: Where the source is published, as in "https://..."; empty until it is. `make release-check` says what else states it.
__home__ = ""
