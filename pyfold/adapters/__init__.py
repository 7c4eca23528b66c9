"""Drop-in replacements for the samplers of other packages."""
